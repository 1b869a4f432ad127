//! A `ringkv` process: built, started, watched through its log lines, and ended by its process id.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Longest start, with the machine busy.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Longest refusal to start.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(15);

/// Below the range from which the kernel takes ports for outgoing connections.
const PORTS: std::ops::Range<u16> = 25000..26000;

/// The binary, built with the profile of this test.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile_dir = test.ancestors().nth(2).expect("TARGET/PROFILE/deps/test");
        let profile = match profile_dir.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            other => other,
        };
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "ringkv-net", "--bin", "ringkv"])
            .args(["--profile", profile, "--target-dir"])
            .arg(profile_dir.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success());
        profile_dir.join("ringkv")
    })
}

/// A client port that nobody listens on, and the peer port next to it.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let pairs = (PORTS.end - PORTS.start) / 2;
    // Test processes that run at once begin at different places.
    let start = (std::process::id() % u32::from(pairs)) as u16;
    for _ in 0..pairs {
        let pair = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % pairs;
        let port = PORTS.start + 2 * pair;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 1) {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// A directory below `target/tmp`, removed when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("process-{}-{nth}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What is left is found by whoever looks for space.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How to start a server, as often as wanted, always on the same port and directory.
#[derive(Clone)]
pub struct Setup {
    pub port: u16,
    pub data_dir: PathBuf,
    /// Command line before the binary's path.
    wrapper: Vec<String>,
}

impl Setup {
    pub fn new(data_dir: &Path) -> Self {
        Self {
            port: free_port(),
            data_dir: data_dir.to_owned(),
            wrapper: Vec::new(),
        }
    }

    /// The same, started by a command that executes what follows it, under the same process id.
    pub fn wrapped(&self, wrapper: &[&str]) -> Self {
        Self {
            wrapper: wrapper.iter().map(ToString::to_string).collect(),
            ..self.clone()
        }
    }

    /// The same, on another port.
    pub fn elsewhere(&self) -> Self {
        Self {
            port: free_port(),
            ..self.clone()
        }
    }

    fn command(&self) -> Command {
        let mut words = self.wrapper.clone();
        words.push(binary().to_str().unwrap().to_owned());
        let mut command = Command::new(&words[0]);
        let url = format!("http://127.0.0.1:{}", self.port);
        let peer_url = format!("http://127.0.0.1:{}", self.port + 1);
        command
            .args(&words[1..])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen-client-urls", &url])
            .args(["--advertise-client-urls", &url])
            // The same wherever it runs: the member's id comes from these.
            .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-cluster", "default=http://127.0.0.1:2380"])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--shards", "2"]);
        command
    }

    fn spawn(&self) -> Server {
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Server {
            port: self.port,
            child,
            lines,
            seen: Vec::new(),
            waited_for: 0,
        }
    }

    /// Starts a server and waits until it serves.
    pub fn start(&self) -> Server {
        let mut server = self.spawn();
        server.wait_for("ready to serve client requests", START_PATIENCE);
        server
    }

    /// Starts a server that must refuse: exit code 1 and one line of an error, which comes back.
    pub fn start_refused(&self) -> Refusal {
        let begun = Instant::now();
        let mut server = self.spawn();
        let code = server.wait_exit(REFUSAL_PATIENCE);
        let took = begun.elapsed();
        assert_eq!(code.code(), Some(1));
        Refusal {
            line: server.the_error(),
            lines: server.seen.clone(),
            took,
        }
    }
}

/// A start that failed.
pub struct Refusal {
    /// The error.
    pub line: String,
    /// All that it said.
    pub lines: Vec<String>,
    pub took: Duration,
}

/// A running server; killed when dropped.
pub struct Server {
    pub port: u16,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    /// Lines of `seen` that a wait has passed.
    waited_for: usize,
}

impl Server {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The first line with `text` after the one waited for last.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        loop {
            while let Some(line) = self.seen.get(self.waited_for) {
                self.waited_for += 1;
                if line.contains(text) {
                    return line.clone();
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("{error}: no line with: {text}"),
            }
        }
    }

    /// A line with `text` among those that a wait has read.
    pub fn line_seen(&self, text: &str) -> Option<&str> {
        let mut lines = self.seen.iter().map(String::as_str);
        lines.find(|line| line.contains(text))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end of the process, whoever causes it.
    pub fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let ended = poll(&mut fds, Some(&patience.try_into().unwrap())).unwrap();
        assert_eq!(ended, 1, "still running after {patience:?}");
        let status = self.child.wait().unwrap();
        // The process is gone, so the pipe ends.
        self.seen.extend(self.lines.iter());
        status
    }

    /// The one line of level error; to be asked after the end.
    pub fn the_error(&self) -> String {
        let errors: Vec<&String> = self
            .seen
            .iter()
            .filter(|line| line.contains(r#""level":"error""#) || !line.starts_with('{'))
            .collect();
        assert_eq!(errors.len(), 1, "{errors:#?}");
        errors[0].clone()
    }

    /// Kills it, as a crash would, and waits until it is gone.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        let status = self.wait_exit(Duration::from_secs(10));
        assert_eq!(status.code(), None);
    }

    /// Stops it, as an operator would; how long that took.
    pub fn stop(mut self) -> Duration {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        let status = self.wait_exit(Duration::from_secs(10));
        let took = begun.elapsed();
        assert_eq!(status.code(), Some(0));
        took
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            eprintln!("--- server on port {}", self.port);
            self.seen.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}
