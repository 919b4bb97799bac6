//! The power goes out, again and again, and nothing that was acknowledged is lost.
//!
//! A file system of our own on a loop device is shut down as if the power had gone: what was not
//! written to the device is lost, the file system's own log included. A child writes through the
//! store and says which records were acknowledged; after the file system has come back, every one of
//! them must be there, and the store must open by itself. What reached the device is kept, so a disk
//! that honours a flush is assumed.
//!
//! Needs root and loop devices; says so loudly where it has neither.
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that cannot run should stop, and say so"
)]
#![expect(unsafe_code, reason = "the ioctl that cuts the power has no safe name")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use mayfly_core::{Charter, PolicyEpoch, Registrar, Sequence, Shard, TrustDomain};
use mayfly_store::{Committed, Committer, IndexReport, OpenOptions, Store};

#[path = "fixtures/journal.rs"]
#[expect(dead_code, reason = "only its records are used")]
mod journal;
use journal::{START, record};

/// Set for the child: where to write, and how many records may be in flight.
const CHILD: &str = "MAYFLY_POWERCUT_CHILD";
/// Fresh file systems, and power cuts of each.
const DISKS: u64 = 4;
const CUTS: u64 = 7;
const IMAGE_BYTES: u64 = 192 << 20;

fn main() -> ExitCode {
    if let Ok(order) = std::env::var(CHILD) {
        let (window, dir) = order.split_once(' ').expect("an order");
        write_for_ever(Path::new(dir), window.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    let mut total = Totals::default();
    for disk in 0..DISKS {
        let Some(disk) = Disk::new(disk) else {
            println!("powercut: SKIPPED, it needs root, loop devices and mkfs.ext4");
            return ExitCode::SUCCESS;
        };
        for cut in 0..CUTS {
            // One record at a time, a few, and as many as a busy broker has in flight.
            let window = [1, 16, 20_000].into_iter().cycle().nth(usize::try_from(cut).unwrap_or(0));
            round(&disk, window.unwrap_or(1), &mut total);
        }
    }
    println!("{}", total.line());
    if total.lost == 0 && total.acknowledged > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Debug, Default)]
struct Totals {
    rounds: u64,
    acknowledged: u64,
    lost: u64,
    late: u64,
    torn: u64,
    rebuilt: u64,
}

impl Totals {
    fn line(&self) -> String {
        format!(
            "powercut: {} rounds, {} records acknowledged, {} lost; {} acknowledged after the cut and \
             gone, {} torn ends cut, {} indexes rebuilt",
            self.rounds, self.acknowledged, self.lost, self.late, self.torn, self.rebuilt
        )
    }
}

/// Writes until the power goes, cuts it, lets it come back, and looks.
fn round(disk: &Disk, window: u64, total: &mut Totals) {
    let data = disk.mount.path().join("data");
    let before = last_of(&data);
    let mut child = spawn_writer(&data, window);
    let mut pipe = child.stdout.take().expect("a pipe");
    let heard = Arc::new(AtomicU64::new(before));
    let hears = Arc::clone(&heard);
    let reader = thread::spawn(move || {
        let mut number = [0; 8];
        while pipe.read_exact(&mut number).is_ok() {
            hears.store(u64::from_le_bytes(number), Ordering::Release);
        }
    });
    // Long enough for sled to have written something of its own in some rounds, and not in others.
    thread::sleep(Duration::from_millis(150 + 130 * (total.rounds % 6)));
    // Here the power goes. What a dying kernel still acknowledges after this is heard by nobody in a
    // real power cut, and it is sometimes untrue: an `fdatasync` that finds its transaction gone,
    // because the shutdown has just aborted it, returns success. (A bare append and `fdatasync` under
    // the same cut did so in 7 of 120 rounds.) It is counted apart.
    let acknowledged = heard.load(Ordering::Acquire);
    disk.cut_power();
    child.kill().unwrap_or_default();
    child.wait().expect("the child ends");
    reader.join().expect("the pipe ends");
    disk.restart();

    let opened = Store::open(&data, &OpenOptions::new(START)).expect("the store opens by itself");
    total.rounds += 1;
    total.acknowledged += acknowledged - before;
    total.torn += u64::from(opened.report.torn.is_some());
    total.rebuilt += u64::from(matches!(opened.report.index, IndexReport::Rebuilt(_)));
    let mut journal = Vec::new();
    let verified = mayfly_audit::read(&data.join("store/log"), Sequence(0), |entry| {
        journal.push((entry.sequence, entry.record));
    });
    let verified = verified.expect("the log is whole");
    for (at, (sequence, found)) in (1..).zip(&journal) {
        assert_eq!((sequence.0, found), (at, &record(at)), "a record is not what was written");
    }
    total.lost += acknowledged.saturating_sub(verified.last.0);
    total.late += heard.load(Ordering::Acquire).saturating_sub(verified.last.0.max(acknowledged));
    let now = journal.last().map_or(START, |(_, record)| record.at);
    let from_snapshot = Registrar::replay(charter(), Some(opened.snapshot), []);
    let from_log = Registrar::replay(charter(), None, journal);
    assert!(from_snapshot.memory(now) == from_log.memory(now), "the index remembers otherwise");
    drop(opened.journal);
}

fn charter() -> Charter {
    Charter {
        trust_domain: TrustDomain::parse("example.org").expect("a name"),
        shard: Shard(0),
        policy_epoch: PolicyEpoch(1),
        admission: mayfly_core::Admission::default(),
    }
}

fn last_of(data: &Path) -> u64 {
    let log = data.join("store/log");
    if !log.exists() {
        return 0;
    }
    mayfly_audit::verify(&log).expect("the log is whole").last.0
}

fn spawn_writer(data: &Path, window: u64) -> Child {
    let myself = std::env::current_exe().expect("our own path");
    Command::new(myself)
        .env(CHILD, format!("{window} {}", data.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child")
}

/// The child: keeps `window` records in flight and tells each acknowledgement.
fn write_for_ever(data: &Path, window: u64) {
    let opened = Store::open(data, &OpenOptions::new(START)).expect("the store opens");
    let mut next = opened.last.0 + 1;
    let (sender, committed) = mpsc::sync_channel(1 << 16);
    let committer = Committer::start(opened.journal, move |news| {
        sender.send(news).expect("somebody listens");
    });
    let committer = committer.expect("a thread");
    let mut stdout = std::io::stdout().lock();
    let mut durable = opened.last.0;
    loop {
        while next <= durable + window {
            committer.submit(Sequence(next), record(next)).expect("the queue has room");
            next += 1;
        }
        match committed.recv() {
            Ok(Committed::Upto(upto)) => durable = upto.0,
            Ok(Committed::Failed(_)) | Err(_) => return,
        }
        stdout.write_all(&durable.to_le_bytes()).expect("the parent listens");
        stdout.flush().expect("the parent listens");
    }
}

/// A file system on a loop device.
struct Disk {
    mount: tempfile::TempDir,
    image: tempfile::NamedTempFile,
}

impl Disk {
    /// `None` where that is not possible. Every second one has small blocks.
    fn new(number: u64) -> Option<Self> {
        let image = tempfile::NamedTempFile::new().ok()?;
        image.as_file().set_len(IMAGE_BYTES).ok()?;
        let block = if number.is_multiple_of(2) { "4096" } else { "1024" };
        let options = ["-q", "-F", "-b", block];
        run(Command::new("mkfs.ext4").args(options).arg(image.path())).then_some(())?;
        let disk = Self { mount: tempfile::tempdir().ok()?, image };
        disk.attach().then_some(disk)
    }

    fn attach(&self) -> bool {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(self.image.path())
            .arg(self.mount.path()))
    }

    /// From here on the device hears nothing more; writes and syncs fail.
    fn cut_power(&self) {
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(self.mount.path()).expect("the mount point");
        // SAFETY: the descriptor is open and the kernel reads four bytes from a live variable.
        let cut = unsafe { ioctl::ext4_shutdown(root.as_raw_fd(), &NO_LOG_FLUSH) };
        cut.expect("ext4 shuts down");
    }

    fn restart(&self) {
        assert!(run(Command::new("umount").arg(self.mount.path())), "unmounted after the cut");
        assert!(self.attach(), "mounted again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.mount.path()));
    }
}

mod ioctl {
    // The kernel declares it as a read although it only takes a flag.
    nix::ioctl_write_ptr_bad!(ext4_shutdown, nix::request_code_read!(b'X', 125, 4), u32);
}

fn run(command: &mut Command) -> bool {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
