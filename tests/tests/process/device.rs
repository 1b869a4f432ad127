//! Devices: writes are flushed before they are acknowledged, and no device that fails or is full
//! makes an acknowledgement untrue.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::client::Client;
use crate::load::{Load, Memory};
use crate::server::{Server, Setup, TempDir};
use crate::volume::Volume;

const PATIENCE: Duration = Duration::from_secs(20);
/// No put that a device lets through takes longer.
const STALL: Duration = Duration::from_millis(1500);
/// Fills a segment with few puts.
const BIG_BYTES: usize = 1 << 20;

/// Flags of the log segments that `pid` has open for writing.
fn log_file_flags(pid: Pid, data_dir: &Path) -> Vec<OFlags> {
    let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let mut found = Vec::new();
    for entry in fs::read_dir(process.join("fd")).unwrap() {
        let entry = entry.unwrap();
        // One that is closed meanwhile is none of those.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        // Not the file that is being prepared.
        let is_log = target
            .extension()
            .is_some_and(|extension| extension == "wal");
        if !is_log || !target.starts_with(data_dir) {
            continue;
        }
        let info = process.join("fdinfo").join(entry.file_name());
        let info = fs::read_to_string(info).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        found.push(OFlags::from_bits_retain(flags));
    }
    found
}

fn assert_log_flags(server: &Server, flags: &[OFlags]) {
    let dsync = server.line_seen(r#""by":"Dsync""#).is_some();
    assert!(dsync || server.line_seen(r#""by":"Fdatasync""#).is_some());
    assert!(!flags.is_empty());
    for flags in flags {
        assert!(flags.contains(OFlags::DIRECT), "{flags:?}");
        assert_eq!(flags.contains(OFlags::DSYNC), dsync, "{flags:?}");
    }
}

#[tokio::test]
async fn the_log_bypasses_the_page_cache() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    let server = setup.start();
    Client::connect(server.port).await.put("a", "1").await;
    assert_log_flags(&server, &log_file_flags(server.pid(), dir.path()));
    server.stop();
}

#[tokio::test]
async fn each_acknowledged_write_was_flushed() {
    let Some(volume) = Volume::new(300, 300) else {
        return;
    };
    let server = volume.setup().start();
    let mut client = Client::connect(server.port).await;
    client.put("first", "").await;
    let before = volume.flushes();
    for count in 0..50 {
        client.put(&format!("key-{count}"), "value").await;
    }
    let flushes = volume.flushes() - before;
    assert!(flushes >= 50, "{flushes} flushes for 50 writes, one by one");
    server.stop();
}

#[tokio::test]
async fn a_full_disk_makes_writes_wait_and_loses_nothing() {
    let Some(volume) = Volume::new(300, 400) else {
        return;
    };
    let setup = volume.setup();
    let mut memory = Memory::default();
    let mut server = setup.start();
    volume.sh("dd if=/dev/zero of=data/ballast bs=1M status=none count=120");
    // Space for two segments and not for a third.
    let load = Load::start(&server, "filling", 4, BIG_BYTES);
    server.wait_for("no space for the next log segment", PATIENCE);
    load.wait_for_silence(STALL, &mut memory);
    // Reads go on.
    let mut client = Client::connect(server.port).await;
    assert!(client.get("filling/0/0").await.is_some());

    volume.sh("rm data/ballast");
    load.wait_for(10, &mut memory);
    load.stop(&mut memory);
    memory.verify(server.port).await;

    volume.sh("dd if=/dev/zero of=data/ballast bs=4K status=none 2>/dev/null || true");
    server.kill();
    // It may wait for space to publish itself, as long as a client would.
    let refusal = setup.start_refused();
    let said = ["no space", "No space"];
    assert!(
        refusal
            .lines
            .iter()
            .any(|line| said.iter().any(|s| line.contains(s)))
    );
    volume.sh("rm data/ballast");
    let server = setup.start();
    memory.verify(server.port).await;
    server.stop();
}

#[tokio::test]
async fn a_failed_log_write_stops_the_server() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    let mut memory = Memory::default();
    // Beyond the limit on file sizes a write fails with EFBIG, if the signal is ignored.
    let limited = setup.wrapped(&["sh", "-c", r#"trap "" XFSZ; exec "$0" "$@""#]);
    let mut server = limited.start();
    let load = Load::start(&server, "before", 16, 500);
    load.wait_for(300, &mut memory);
    let limit = Rlimit {
        current: Some(0),
        maximum: None,
    };
    prlimit(Some(server.pid()), Resource::Fsize, limit).unwrap();
    let status = server.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(1));
    let line = server.the_error();
    assert!(line.contains("failed to write the log; stopping"), "{line}");
    assert!(line.contains("wal/0000000000000001.wal at "), "{line}");
    load.finish(&mut memory);

    let server = setup.start();
    memory.verify(server.port).await;
    server.stop();
}

#[tokio::test]
async fn a_failed_flush_stops_the_server() {
    // The device promises more than it can store: what it cannot store fails when flushed.
    let Some(volume) = Volume::new(600, 300) else {
        return;
    };
    let setup = volume.setup();
    let mut memory = Memory::default();
    let mut server = setup.start();
    let load = Load::start(&server, "filling", 4, BIG_BYTES);
    load.wait_for(10, &mut memory);
    volume.sh("dd if=/dev/zero of=device/ballast bs=1M status=none 2>/dev/null || true");
    let status = server.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(1));
    let line = server.the_error();
    assert!(line.contains("; stopping"), "{line}");
    load.finish(&mut memory);

    volume.sh("rm device/ballast; umount data; mount -o loop device/image data");
    let server = setup.start();
    memory.verify(server.port).await;
    server.stop();
}
