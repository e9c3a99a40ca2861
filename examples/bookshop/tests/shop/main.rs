//! The bookshop as it is run: killed, in processes of its own, with wrong settings.

mod support;

#[cfg(all(feature = "postgres", feature = "kafka"))]
use std::time::Instant;

use support::{Folder, Process, bookshop, words};

#[tokio::test]
async fn bookshop_killed_again_and_again_on_sqlite_has_books_that_balance() {
    let folder = Folder::new();
    let ended = bookshop(&["--folder", folder.path(), "--crash", "4"]).await;
    assert!(ended.is_good, "{}", ended.said);
    assert!(ended.said.contains("life 1: killed"), "{}", ended.said);
    assert!(ended.said.contains("the books balance"), "{}", ended.said);
    let checked = bookshop(&["check", "--folder", folder.path()]).await;
    assert!(checked.is_good, "{}", checked.said);
}

/// The check of the whole program has teeth: see also the tests of `books`.
#[tokio::test]
async fn bookshop_whose_books_were_cooked_fails_its_check() {
    let folder = Folder::new();
    let ended = bookshop(&["--folder", folder.path(), "--orders", "20"]).await;
    assert!(ended.is_good, "{}", ended.said);
    for (service, cooking, fault) in [
        (
            "accounts",
            "UPDATE account SET cents = cents + 1 WHERE name = 'ada'",
            "ada has",
        ),
        (
            "stock",
            "DELETE FROM parcel WHERE order_id = 'order-3'",
            "order-3: 0 parcels",
        ),
        (
            "notify",
            "INSERT INTO mail VALUES ('ada', 'order-3', 'shipped')",
            "order-3: 2 mails `shipped`",
        ),
        (
            "orders",
            "UPDATE orders SET state = 'accepted' WHERE id = 'order-3'",
            "order-3 is accepted, its saga Completed",
        ),
    ] {
        folder.change(service, cooking).await;
        let checked = bookshop(&["check", "--within", "0", "--folder", folder.path()]).await;
        assert!(!checked.is_good, "{cooking}: {}", checked.said);
        assert!(checked.said.contains(fault), "{cooking}: {}", checked.said);
    }
}

#[tokio::test]
async fn bookshop_run_twice_in_a_folder_takes_each_order_once() {
    let folder = Folder::new();
    let first = bookshop(&["--folder", folder.path(), "--orders", "20"]).await;
    let second = bookshop(&["--folder", folder.path(), "--orders", "20"]).await;
    assert!(first.is_good && second.is_good, "{}", second.said);
    assert_eq!(first.said, second.said);
    let more = bookshop(&["--folder", folder.path(), "--orders", "40"]).await;
    assert!(
        more.is_good && more.said.contains("orders  40:"),
        "{}",
        more.said
    );
}

#[tokio::test]
async fn bookshop_with_wrong_settings_says_what_to_do() {
    let folder = Folder::new();
    let file = folder.file("no-folder");
    for (line, said) in [
        (format!("--folder {file}/shop"), "can't be made (--folder)"),
        (format!("check --folder {file}"), "there is no bookshop in"),
        (
            "stock".into(),
            "need a broker between them: --kafka HOST:PORT",
        ),
        ("--crash 1 stock".into(), "--crash kills the whole shop"),
        ("--name Upper".into(), "a letter first"),
    ] {
        let ended = bookshop(&words(&line)).await;
        assert!(!ended.is_good, "{line}: {}", ended.said);
        assert!(ended.said.contains(said), "{line}: {}", ended.said);
    }
}

#[tokio::test]
async fn bookshop_beside_another_in_its_folder_is_refused() {
    let folder = Folder::new();
    let line = format!("--folder {} --orders 20000", folder.path());
    let mut first = Process::start(&words(&line));
    // Once it has that file it has the lock.
    folder.until_there("broker.db-wal").await;
    let second = bookshop(&["--folder", folder.path()]).await;
    assert!(!second.is_good, "{}", second.said);
    assert!(
        second.said.contains("is another bookshop at work"),
        "{}",
        second.said
    );
    first.kill().await;
}

#[cfg(not(feature = "postgres"))]
#[tokio::test]
async fn bookshop_built_without_postgres_says_how_to_get_it() {
    let ended = bookshop(&["--postgres", "postgres://a@b/c"]).await;
    assert!(
        !ended.is_good && ended.said.contains("--features postgres"),
        "{}",
        ended.said
    );
}

#[cfg(not(feature = "kafka"))]
#[tokio::test]
async fn bookshop_built_without_kafka_says_how_to_get_it() {
    let folder = Folder::new();
    let ended = bookshop(&["--kafka", "localhost:9092", "--folder", folder.path()]).await;
    assert!(
        !ended.is_good && ended.said.contains("--features postgres,kafka"),
        "{}",
        ended.said
    );
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn bookshop_with_wrong_servers_says_what_to_do() {
    for (line, said) in [
        ("--postgres mysql://a@b/c", "--postgres takes postgres://"),
        (
            "--postgres postgres://a@127.0.0.1:x/c",
            "the URL of --postgres",
        ),
        (
            "--postgres postgres://a:hush@127.0.0.1:1/c",
            "connect to PostgreSQL at 127.0.0.1:1",
        ),
    ] {
        let ended = bookshop(&words(line)).await;
        assert!(!ended.is_good, "{line}: {}", ended.said);
        assert!(ended.said.contains(said), "{line}: {}", ended.said);
        assert!(!ended.said.contains("hush"), "{line}: {}", ended.said);
    }
}

#[cfg(feature = "kafka")]
#[tokio::test]
async fn bookshop_without_a_kafka_that_answers_ends_with_its_name() {
    let folder = Folder::new();
    let ended = bookshop(&["--kafka", "127.0.0.1:1", "--folder", folder.path()]).await;
    assert!(!ended.is_good, "{}", ended.said);
    let said = "connect to Kafka (--kafka): topics can't be made at 127.0.0.1:1";
    assert!(ended.said.contains(said), "{}", ended.said);
}

/// Every service in its own process, and each is killed once it has done some of its work. More orders come after
/// that: all have work left, however fast the machine is.
#[cfg(all(feature = "postgres", feature = "kafka"))]
#[tokio::test]
async fn bookshop_services_killed_on_postgres_and_kafka_have_books_that_balance() {
    let shop = support::Servers::new();
    let line = |role: &str, orders| format!("{role} --orders {orders} {}", shop.settings());
    let start = |role: &str, orders| Process::start(&words(&line(role, orders)));
    let begun = Instant::now();
    let mut services = ["stock", "accounts", "notify", "orders"].map(|role| start(role, 200));
    // What shows that a service is at its work: a count in its schema, and how much of it.
    let signs = [
        ("stock", "quorate_saga_fence", 20),
        ("accounts", "quorate_saga_fence", 20),
        ("notify", "mail", 20),
        ("orders", "quorate_saga", 40),
    ];
    for (service, (role, table, count)) in services.iter_mut().zip(signs) {
        shop.until_rows(role, table, count).await;
        service.kill().await;
        println!("{role} killed after {:?}", begun.elapsed());
        *service = start(role, 300);
    }
    let checked = bookshop(&words(&line("check", 300))).await;
    assert!(checked.is_good, "{}", checked.said);
    println!("the books balance after {:?}", begun.elapsed());
    for service in services {
        service.end().await;
    }
    // Once more, now that nothing moves.
    let checked = bookshop(&words(&line("check --within 0", 300))).await;
    assert!(checked.is_good, "{}", checked.said);
    shop.end().await;
}
