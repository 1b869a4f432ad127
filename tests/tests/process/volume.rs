//! A small ext4 of our own: on a loop device whose image is in a tmpfs, all in a mount namespace
//! that a holder process keeps. It vanishes with the holder, which ends with this process.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::server::{Setup, TempDir};

/// See the module.
pub struct Volume {
    holder: Child,
    /// Where it is mounted, as the namespace sees it: `device` holds the image, `data` is the ext4.
    root: TempDir,
}

impl Volume {
    /// An ext4 of `file_system_mib` whose device can store `device_mib`; `None`, with a printed
    /// reason, where that is not permitted.
    pub fn new(file_system_mib: u32, device_mib: u32) -> Option<Self> {
        let root = TempDir::new();
        let script = format!(
            "set -e; cd '{}'; mkdir device data; mount -t tmpfs -o size={device_mib}m none device; \
             truncate -s {file_system_mib}M device/image; mkfs.ext4 -q -m 0 device/image; \
             mount -o loop device/image data; echo mounted; exec cat",
            root.path().display()
        );
        let holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut holder = match holder {
            Ok(holder) => holder,
            Err(error) => {
                eprintln!("skipped: cannot run unshare: {error}");
                return None;
            }
        };
        let mut line = String::new();
        let mut stdout = BufReader::new(holder.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        if line != "mounted\n" {
            let mut reason = String::new();
            let mut stderr = holder.stderr.take().unwrap();
            stderr.read_to_string(&mut reason).unwrap();
            holder.wait().unwrap();
            eprintln!("skipped: mounting is not permitted here: {}", reason.trim());
            return None;
        }
        Some(Self { holder, root })
    }

    fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    /// A server on this volume.
    pub fn setup(&self) -> Setup {
        let data_dir = self.root.path().join("data/ringkv");
        Setup::new(&data_dir).wrapped(&["nsenter", "--mount", "--target", &self.pid()])
    }

    /// Runs a shell script with the volume's root as its directory.
    pub fn sh(&self, script: &str) {
        let script = format!("cd '{}'; {script}", self.root.path().display());
        let status = Command::new("nsenter")
            .args(["--mount", "--target", &self.pid(), "sh", "-c", &script])
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
    }

    /// Flushes that the device has completed.
    pub fn flushes(&self) -> u64 {
        let mounts = Path::new("/proc").join(self.pid()).join("mounts");
        let mounts = std::fs::read_to_string(mounts).unwrap();
        let data = self.root.path().join("data");
        let mut words = mounts.lines().map(str::split_whitespace);
        let device = words.find_map(|mut words| {
            let device = words.next()?;
            (words.next()? == data.to_str()?).then_some(device)
        });
        let device = Path::new(device.unwrap()).file_name().unwrap();
        let stat = Path::new("/sys/block").join(device).join("stat");
        let stat = std::fs::read_to_string(stat).unwrap();
        // The 16th field: Documentation/block/stat.rst.
        stat.split_whitespace().nth(15).unwrap().parse().unwrap()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Its end unmounts everything.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
