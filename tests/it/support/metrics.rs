//! The metrics of a daemon.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use super::daemon::Daemon;

/// The values at one moment, by name with labels.
#[derive(Debug)]
pub struct MetricValues {
    pub text: String,
    numbers: BTreeMap<String, f64>,
}

impl MetricValues {
    /// Requests the metrics of a daemon.
    #[track_caller]
    pub fn scrape(daemon: &Daemon) -> Self {
        let (status, text) = daemon.get("/metrics");
        assert_eq!(status, 200);
        let text = String::from_utf8(text).expect("UTF-8");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let numbers = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        });
        Self { numbers: numbers.collect(), text }
    }

    /// The value of a metric, or 0 if it is absent.
    pub fn get(&self, name: &str) -> f64 {
        self.numbers.get(name).copied().unwrap_or_default()
    }

    /// The sum of all values whose names begin with `prefix`.
    pub fn sum(&self, prefix: &str) -> f64 {
        self.numbers.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum()
    }

    /// The names of all metrics, without labels and the suffixes of histograms.
    pub fn names(&self) -> Vec<&str> {
        let types = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.map(|line| line.split(' ').next().expect("a name")).collect()
    }
}

/// Runs promtool on a text. Returns whether it succeeded, and its output.
#[track_caller]
pub fn promtool(args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed: it comes with Debian's prometheus, see tests/run");
    let mut stdin = child.stdin.take().expect("piped");
    let text = input.to_owned();
    // promtool may end without reading its input.
    let writer = std::thread::spawn(move || drop(stdin.write_all(text.as_bytes())));
    let output = child.wait_with_output().expect("the process ends");
    writer.join().expect("writing does not panic");
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
}
