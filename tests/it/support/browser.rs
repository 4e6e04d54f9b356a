//! Headless Chromium, controlled over a pipe (the Chrome DevTools Protocol).

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine;
use rustix::process::Pid;
use serde_json::{Value, json};

use super::nix::utf8;
use super::scratch::{Leash, Scratch};

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// The browser reads what it is told from 3 and answers on 4.
const START: &str = "exec chromium \"$@\" 3<&0 4>&1 < /dev/null > /dev/null";

/// A browser with one tab. Killed on drop.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    /// What happened that nobody has asked for yet.
    events: VecDeque<Value>,
    session: Option<String>,
    last: u64,
    /// What it has said so far, and who listens.
    log: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
    _leash: Leash,
    _scratch: Scratch,
}

impl Browser {
    /// One with nothing open.
    #[track_caller]
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let mut child = Command::new("/bin/sh")
            .args(["-c", START, "chromium"])
            .args(["--headless", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu"])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run"])
            .args(["--disable-component-update", "--disable-extensions", "--hide-scrollbars"])
            // Nothing but this machine, whatever it wants by itself.
            .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            .arg(format!("--user-data-dir={}", utf8(&scratch.join("profile"))))
            .env("HOME", scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("/bin/sh starts");
        let leash = Leash::new(Pid::from_child(&child));
        let input = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        let errors = child.stderr.take().expect("it is piped");
        let log = Arc::new(Mutex::new(String::new()));
        let listener = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in BufReader::new(errors).lines().map_while(Result::ok) {
                    *log.lock().expect("nobody panics with it") += &(line + "\n");
                }
            }
        });
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { break };
                let message = serde_json::from_slice(&message).expect("the browser speaks JSON");
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self {
            child,
            input,
            messages,
            events: VecDeque::new(),
            session: None,
            last: 0,
            log,
            listener: Some(listener),
            _leash: leash,
            _scratch: scratch,
        };
        let tab = browser.tell("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": tab["targetId"], "flatten": true });
        let attached = browser.tell("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            browser.tell(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Does something, and returns what came of it.
    #[track_caller]
    pub fn tell(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let sent = self.input.write_all(format!("{message}\0").as_bytes());
        assert!(
            sent.is_ok(),
            "chromium has ended: install it, or run tests/run, which does\n{}",
            self.log()
        );
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(deadline, method);
            if message["id"] == self.last {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push_back(message);
        }
    }

    #[track_caller]
    fn receive(&self, deadline: Instant, what: &str) -> Value {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = self.messages.recv_timeout(left);
        message.unwrap_or_else(|why| panic!("waiting for {what}: {why}\n{}", self.log()))
    }

    fn log(&self) -> String {
        self.log.lock().expect("nobody panics with it").clone()
    }

    /// Does what opens a page, and waits until that is there, as a whole.
    #[track_caller]
    fn until_loaded(&mut self, open: impl FnOnce(&mut Self)) {
        let is_load = |message: &Value| message["method"] == "Page.loadEventFired";
        // Of a page before.
        self.events.retain(|message| !is_load(message));
        open(self);
        let deadline = Instant::now() + PATIENCE;
        while !self.events.iter().any(is_load) {
            let message = self.receive(deadline, "a page");
            self.events.push_back(message);
        }
    }

    /// Opens a page.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        self.until_loaded(|browser| {
            let opened = browser.tell("Page.navigate", json!({ "url": url }));
            assert!(opened["errorText"].is_null(), "{url}: {opened}");
        });
    }

    /// Clicks on what a selector names, which leads to another page.
    #[track_caller]
    pub fn follow(&mut self, selector: &str) {
        self.until_loaded(|browser| {
            browser.eval(&format!("document.querySelector({}).click()", json!(selector)));
        });
    }

    /// Types a text into a field, and Enter.
    #[track_caller]
    pub fn search(&mut self, selector: &str, text: &str) {
        self.until_loaded(|browser| {
            browser.eval(&format!("document.querySelector({}).focus()", json!(selector)));
            browser.tell("Input.insertText", json!({ "text": text }));
            let enter = |kind: &str| json!({ "type": kind, "key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13 });
            browser.tell("Input.dispatchKeyEvent", enter("keyDown"));
            browser.tell("Input.dispatchKeyEvent", enter("keyUp"));
        });
    }

    /// The value of an expression on the page.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true });
        let answer = self.tell("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text of all that a selector names.
    #[track_caller]
    pub fn texts(&mut self, selector: &str) -> Vec<String> {
        let all =
            format!("[...document.querySelectorAll({})].map(e => e.textContent)", json!(selector));
        serde_json::from_value(self.eval(&all)).expect("texts")
    }

    /// Makes the window so many pixels wide.
    pub fn width(&mut self, width: u32) {
        let phone = width < 600;
        let metrics =
            json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": phone });
        self.tell("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Makes the visitor one who likes `light` or `dark`.
    pub fn scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.tell("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Lets scripts run, or not.
    pub fn scripts(&mut self, on: bool) {
        self.tell("Emulation.setScriptExecutionDisabled", json!({ "value": !on }));
    }

    /// A picture of the whole page, as PNG.
    pub fn picture(&mut self) -> Vec<u8> {
        let picture = self.tell("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        let text = picture["data"].as_str().expect("base 64");
        base64::engine::general_purpose::STANDARD.decode(text).expect("base 64")
    }

    /// Writes a picture into the folder that the environment names, for who wants to look.
    pub fn show(&mut self, name: &str) {
        if let Some(folder) = std::env::var_os("NIX_STORED_TEST_PICTURES") {
            let picture = self.picture();
            let file = Path::new(&folder).join(name).with_extension("png");
            fs::write(file, picture).expect("a picture is written");
        }
    }

    /// What pages have asked for since this was called last.
    pub fn requests(&self) -> Vec<String> {
        let requests =
            self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        requests
            .map(|event| event["params"]["request"]["url"].as_str().expect("a URL").to_owned())
            .collect()
    }

    /// What the browser and scripts have complained about.
    pub fn complaints(&self) -> Vec<String> {
        const COMPLAINTS: [&str; 4] = [
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Audits.issueAdded",
        ];
        let told = self
            .events
            .iter()
            .filter(|event| COMPLAINTS.iter().any(|method| event["method"] == *method));
        told.map(|event| event["params"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its children write into its folder until they notice; they have its standard error, too.
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}
