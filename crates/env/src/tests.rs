//! Both disks pass one suite; the simulated one forgets what it must.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::sim::{Crash, Fault, Sim, SimDisk};
use crate::{Disk, Event, JobClass, Jobs, Random, RealDisk, ThreadJobs};

fn disk_conformance(disk: &dyn Disk, root: &Path) {
    let dir = root.join("a/b");
    disk.create_dir_all(&dir).unwrap();
    let path = dir.join("one");
    let file = disk.create(&path).unwrap();
    assert_eq!(
        disk.create(&path).err().unwrap().kind(),
        io::ErrorKind::AlreadyExists
    );
    file.write_all_at(b"hello", 0).unwrap();
    file.write_all_at(b"world", 8).unwrap();
    file.sync().unwrap();
    let mut buf = [0; 20];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 13);
    assert_eq!(&buf[..13], b"hello\0\0\0world");
    assert_eq!(file.read_at(&mut buf, 13).unwrap(), 0);
    let short = file.read_exact_at(&mut buf, 0).err().unwrap();
    assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    file.set_size(5).unwrap();
    file.allocate(4096).unwrap();
    assert_eq!(file.size().unwrap(), 4096);
    disk.rename(&path, &dir.join("two")).unwrap();
    disk.hard_link(&dir.join("two"), &dir.join("three"))
        .unwrap();
    disk.sync_dir(&dir).unwrap();
    assert_eq!(disk.list(&dir).unwrap(), ["three", "two"]);
    assert!(!disk.exists(&path).unwrap());
    disk.remove(&dir.join("two")).unwrap();
    assert_eq!(&disk.read(&dir.join("three")).unwrap()[..6], b"hello\0");
    disk.write_atomic(&dir.join("four"), b"whole").unwrap();
    disk.write_atomic(&dir.join("four"), b"again").unwrap();
    assert_eq!(disk.read(&dir.join("four")).unwrap(), b"again");
    let held = disk.lock(&dir.join("LOCK")).unwrap();
    assert_eq!(
        disk.lock(&dir.join("LOCK")).err().unwrap().kind(),
        io::ErrorKind::WouldBlock
    );
    drop(held);
    drop(disk.lock(&dir.join("LOCK")).unwrap());
    assert!(disk.space(&dir).unwrap().free > 0);
    let read_only = disk.open_read(&dir.join("four")).unwrap();
    assert!(read_only.write_all_at(b"x", 0).is_err());
    assert_eq!(
        disk.open(&dir.join("none")).err().unwrap().kind(),
        io::ErrorKind::NotFound
    );
}

#[test]
fn disk_real_passes_conformance() {
    let dir = tempfile::tempdir().unwrap();
    disk_conformance(&RealDisk, dir.path());
}

#[test]
fn disk_simulated_passes_conformance() {
    disk_conformance(&SimDisk::new(Random::from_seed(1)), Path::new("/sim"));
}

#[test]
fn disk_crash_loses_unsynced_data_and_names_and_keeps_synced() {
    let disk = SimDisk::new(Random::from_seed(1));
    let dir = Path::new("/d");
    disk.create_dir_all(dir).unwrap();
    let file = disk.create(&dir.join("kept")).unwrap();
    file.write_all_at(b"synced", 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(dir).unwrap();
    file.write_all_at(b"SYNCED", 0).unwrap();
    disk.create(&dir.join("lost")).unwrap();
    let up = disk.crash_with(Crash::LoseAll);
    assert!(
        file.write_all_at(b"x", 0).is_err(),
        "a handle outlived the crash"
    );
    assert_eq!(up.list(dir).unwrap(), ["kept"]);
    assert_eq!(up.read(&dir.join("kept")).unwrap(), b"synced");
}

#[test]
fn disk_random_crash_tears_writes_at_sectors() {
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new(Random::from_seed(seed));
        disk.create_dir_all(Path::new("/")).unwrap();
        let file = disk.create(Path::new("/f")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.write_all_at(&[7; 2000], 0).unwrap();
        lengths.insert(disk.crash().read(Path::new("/f")).unwrap().len());
    }
    assert_eq!(
        lengths.into_iter().collect::<Vec<_>>(),
        [0, 512, 1024, 1536, 2000]
    );
}

#[test]
fn disk_faults_hit_once_and_a_full_disk_refuses_growth() {
    let disk = SimDisk::new(Random::from_seed(1));
    disk.create_dir_all(Path::new("/")).unwrap();
    let file = disk.create(Path::new("/f")).unwrap();
    disk.inject(Fault::Sync);
    assert!(file.sync().is_err());
    assert!(file.sync().is_ok());
    disk.create_dir_all(Path::new("/dir")).unwrap();
    let inside = disk.create(Path::new("/dir/f")).unwrap();
    disk.inject_under(Fault::Sync, Path::new("/dir"));
    assert!(file.sync().is_ok());
    assert!(inside.sync().is_err());
    assert!(inside.sync().is_ok());
    disk.set_capacity(Some(100));
    file.write_all_at(&[1; 100], 0).unwrap();
    let full = file.write_all_at(&[1; 1], 100).err().unwrap();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    file.write_all_at(&[2; 50], 50).unwrap();
}

#[test]
fn disk_crash_at_fails_that_operation_and_all_later() {
    let disk = SimDisk::new(Random::from_seed(1));
    disk.create_dir_all(Path::new("/")).unwrap();
    let file = disk.create(Path::new("/f")).unwrap();
    assert_eq!(disk.operations(), 2);
    disk.crash_at(3);
    file.write_all_at(b"x", 0).unwrap();
    assert!(file.sync().is_err());
    assert!(disk.list(Path::new("/")).is_err());
}

#[test]
fn jobs_on_threads_run_and_wake_the_waiter() {
    let jobs = ThreadJobs::new(1);
    let event = Arc::new(Event::new());
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let (event, done) = (Arc::clone(&event), Arc::clone(&done));
        let job = move || {
            done.fetch_add(1, Ordering::SeqCst);
            event.notify();
        };
        jobs.spawn(JobClass::Read, Box::new(job));
    }
    assert!(jobs.wait(&event, &mut || done.load(Ordering::SeqCst) == 100, None));
    let never = jobs.wait(&event, &mut || false, Some(Duration::from_millis(5)));
    assert!(!never);
}

/// Says when it is dropped without having been run.
struct Noticed(Arc<AtomicUsize>);

impl Drop for Noticed {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Fails the test if `ready` stays false.
fn until(ready: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(std::time::Instant::now() < end, "waited too long");
        std::thread::yield_now();
    }
}

#[test]
fn jobs_after_a_panic_are_dropped_unrun_and_no_wait_hangs() {
    let jobs = Arc::new(ThreadJobs::new(1));
    let event = Arc::new(Event::new());
    assert_eq!(jobs.fault(), None);
    // Somebody waits already, as for a flush that never ends.
    let waiter = {
        let (jobs, event) = (Arc::clone(&jobs), Arc::clone(&event));
        std::thread::spawn(move || jobs.wait(&event, &mut || false, None))
    };
    let (dropped, run) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    jobs.spawn(JobClass::Flush, Box::new(|| panic!("a bug")));
    for class in [JobClass::Flush, JobClass::Read, JobClass::Flush] {
        if class == JobClass::Read {
            until(|| jobs.fault().is_some());
        }
        let noticed = Noticed(Arc::clone(&dropped));
        let run = Arc::clone(&run);
        let job = move || {
            let _noticed = noticed;
            run.fetch_add(1, Ordering::SeqCst);
        };
        jobs.spawn(class, Box::new(job));
    }
    until(|| dropped.load(Ordering::SeqCst) == 3);
    assert_eq!(run.load(Ordering::SeqCst), 0);
    let why = jobs.fault().unwrap();
    assert!(why.contains("flush-0") && why.contains("a bug"), "{why}");
    let panic = waiter.join().expect_err("the wait panics");
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("a bug"), "{text}");
}

#[test]
fn jobs_panic_is_told_to_the_hook_once() {
    let heard = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let hook = move |why: &str| hears.lock().push(why.to_owned());
    let jobs = ThreadJobs::with_panic_hook(1, Box::new(hook));
    for n in 0..5 {
        jobs.spawn(JobClass::Apply, Box::new(move || panic!("bug {n}")));
    }
    until(|| jobs.fault().is_some());
    // Ends when the threads have.
    drop(jobs);
    let heard = heard.lock();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(heard[0].contains("thread apply-"), "{heard:?}");
}

#[test]
fn jobs_simulated_run_only_in_a_wait_and_move_the_clock() {
    let sim = Sim::new(3);
    let done = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&done);
    let job = move || {
        seen.fetch_add(1, Ordering::SeqCst);
    };
    sim.jobs.spawn(JobClass::Flush, Box::new(job));
    assert_eq!(done.load(Ordering::SeqCst), 0);
    let event = Event::new();
    assert!(
        sim.jobs
            .wait(&event, &mut || done.load(Ordering::SeqCst) == 1, None)
    );
    let before = sim.env().clock.now();
    assert!(
        !sim.jobs
            .wait(&event, &mut || false, Some(Duration::from_secs(3)))
    );
    assert_eq!(sim.env().clock.now() - before, Duration::from_secs(3));
}

#[test]
fn disk_operation_that_is_to_fail_fails_once_and_a_failed_sync_loses_data() {
    let disk = SimDisk::new(Random::from_seed(1));
    let dir = Path::new("/d");
    disk.create_dir_all(dir).unwrap();
    let file = disk.create(&dir.join("f")).unwrap();
    disk.sync_dir(dir).unwrap();
    disk.fail_at(disk.operations(), io::ErrorKind::StorageFull);
    let failed = file.write_all_at(b"halfhalf", 0).unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.size().unwrap(), 4);
    disk.fail_at(disk.operations(), io::ErrorKind::Other);
    assert!(file.sync().is_err());
    file.sync().unwrap();
    disk.fail_read_at(disk.reads());
    assert!(file.read_exact_at(&mut [0; 4], 0).is_err());
    // The cache still has what no sync will ever write.
    file.read_exact_at(&mut [0; 4], 0).unwrap();
    let up = disk.crash_with(Crash::KeepAll);
    assert_eq!(up.read(&dir.join("f")).unwrap(), b"");
}
