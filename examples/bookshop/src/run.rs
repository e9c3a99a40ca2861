//! The shop in one process, or a service of it in its own.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::books::{Books, Databases};
use crate::database::Database;
use crate::shop::{Running, Shop};
use crate::{Role, Settings, accounts, books, notify, orders, stock};

/// Everything in one process; ends when all orders have, and the books balance.
pub async fn everything<D: Database>(settings: &Settings) -> Result<()> {
    let databases = Databases::<D>::open(settings).await?;
    let shop = Shop::open(settings).await?;
    let accounts = accounts::start(&shop, &databases.accounts).await?;
    let stock = stock::start(&shop, &databases.stock).await?;
    let notify = notify::start(&shop, &databases.notify).await?;
    let (orders, coordinator) = orders::start(&shop, &databases.orders).await?;
    let customers = orders::take_orders(
        coordinator.sagas(),
        databases.orders.clone(),
        settings.orders,
    );
    customers.await?;
    let settled = books::settled(&databases, settings).await;
    let services = [accounts, stock, notify, orders];
    let troubles: Vec<String> = services.iter().filter_map(Running::trouble).collect();
    coordinator.drain().await;
    let drains = services.map(|service| tokio::spawn(service.drain()));
    for drained in drains {
        drained.await?;
    }
    settled.with_context(|| format!("troubles: {troubles:?}"))?;
    // Once more, now that nothing moves.
    books::balanced(&Books::read(&databases).await?, settings.orders)
}

/// Waits for the end of all orders, and looks at the books, while the services are elsewhere, or nowhere.
pub async fn check<D: Database>(settings: &Settings) -> Result<()> {
    let folder = settings.folder.display();
    if settings.postgres.is_none() && !settings.folder.join("orders.db").is_file() {
        bail!("there is no bookshop in {folder} yet: run one, or name its folder by --folder");
    }
    let databases = Databases::<D>::open(settings).await?;
    books::settled(&databases, settings).await?;
    books::balanced(&Books::read(&databases).await?, settings.orders)
}

/// One service; ends when it is told to (SIGTERM, or Ctrl-C).
pub async fn service<D: Database>(settings: &Settings, role: Role) -> Result<()> {
    if settings.kafka.is_none() {
        bail!("services in processes of their own need a broker between them: --kafka HOST:PORT");
    }
    let shop = Shop::open(settings).await?;
    let running = match role {
        Role::Accounts => {
            let database = D::open(settings, "accounts", accounts::TABLES).await?;
            accounts::start(&shop, &database).await?
        }
        Role::Stock => {
            let database = D::open(settings, "stock", stock::TABLES).await?;
            stock::start(&shop, &database).await?
        }
        Role::Notify => {
            let database = D::open(settings, "notify", notify::TABLES).await?;
            notify::start(&shop, &database).await?
        }
        Role::Orders => return take_orders::<D>(settings, &shop).await,
        Role::Check => return check::<D>(settings).await,
    };
    stopped(&running).await?;
    running.drain().await;
    Ok(())
}

async fn take_orders<D: Database>(settings: &Settings, shop: &Shop) -> Result<()> {
    let database = D::open(settings, "orders", orders::TABLES).await?;
    let (running, coordinator) = orders::start(shop, &database).await?;
    let customers = orders::take_orders(coordinator.sagas(), database, settings.orders);
    let mut customers = tokio::spawn(customers);
    tokio::select! {
        told = stopped(&running) => told?,
        Ok(Err(error)) = &mut customers => return Err(error),
    }
    customers.abort();
    coordinator.drain().await;
    running.drain().await;
    Ok(())
}

/// Says what troubles the service, until the process is told to end.
async fn stopped<D: Database>(running: &Running<D>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminated = signal(SignalKind::terminate())?;
    let mut said = None;
    loop {
        tokio::select! {
            _ = terminated.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let trouble = running.trouble();
        if trouble != said {
            eprintln!("{}", trouble.as_deref().unwrap_or("it goes on"));
            said = trouble;
        }
    }
}
