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
use super::scratch::{KillAtExit, Scratch};

/// Only failing tests wait this long.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Chromium reads requests from descriptor 3 and writes responses and events to 4.
const START: &str = "exec chromium \"$@\" 3<&0 4>&1 < /dev/null > /dev/null";

/// A browser with one tab. Killed on drop.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    /// Events that have not been read yet.
    events: VecDeque<Value>,
    session: Option<String>,
    last: u64,
    /// The standard error so far, and the thread that reads it.
    log: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
    _guard: KillAtExit,
    _scratch: Scratch,
}

impl Browser {
    /// A browser with an empty tab.
    #[track_caller]
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let mut child = Command::new("/bin/sh")
            .args(["-c", START, "chromium"])
            .args(["--headless", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu"])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run"])
            .args(["--disable-component-update", "--disable-extensions", "--hide-scrollbars"])
            // The browser may connect only to this machine.
            .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            .arg(format!("--user-data-dir={}", utf8(&scratch.join("profile"))))
            .env("HOME", scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("/bin/sh starts");
        let guard = KillAtExit::new(Pid::from_child(&child));
        let input = child.stdin.take().expect("piped");
        let output = child.stdout.take().expect("piped");
        let errors = child.stderr.take().expect("piped");
        let log = Arc::new(Mutex::new(String::new()));
        let listener = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in BufReader::new(errors).lines().map_while(Result::ok) {
                    *log.lock().expect("the lock is not poisoned") += &(line + "\n");
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
            _guard: guard,
            _scratch: scratch,
        };
        let tab = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": tab["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Calls a method of the protocol and returns its result.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: Value) -> Value {
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
        let deadline = Instant::now() + TIMEOUT;
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
        self.log.lock().expect("the lock is not poisoned").clone()
    }

    /// Calls `open`, which opens a page, and waits until the page is loaded.
    #[track_caller]
    fn until_loaded(&mut self, open: impl FnOnce(&mut Self)) {
        let is_load = |message: &Value| message["method"] == "Page.loadEventFired";
        // The load events of earlier pages.
        self.events.retain(|message| !is_load(message));
        open(self);
        let deadline = Instant::now() + TIMEOUT;
        while !self.events.iter().any(is_load) {
            let message = self.receive(deadline, "a page");
            self.events.push_back(message);
        }
    }

    #[track_caller]
    pub fn open(&mut self, url: &str) {
        self.until_loaded(|browser| {
            let opened = browser.call("Page.navigate", json!({ "url": url }));
            assert!(opened["errorText"].is_null(), "{url}: {opened}");
        });
    }

    /// Clicks on the element that matches a selector and waits for the page it leads to.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        self.until_loaded(|browser| {
            browser.eval(&format!("document.querySelector({}).click()", json!(selector)));
        });
    }

    /// Types a text into a field and presses Enter.
    #[track_caller]
    pub fn search(&mut self, selector: &str, text: &str) {
        self.until_loaded(|browser| {
            browser.eval(&format!("document.querySelector({}).focus()", json!(selector)));
            browser.call("Input.insertText", json!({ "text": text }));
            let enter = |kind: &str| json!({ "type": kind, "key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13 });
            browser.call("Input.dispatchKeyEvent", enter("keyDown"));
            browser.call("Input.dispatchKeyEvent", enter("keyUp"));
        });
    }

    /// The value of an expression on the page.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true });
        let response = self.call("Runtime.evaluate", params);
        assert!(response["exceptionDetails"].is_null(), "{expression}: {response}");
        response["result"]["value"].clone()
    }

    /// The texts of all elements that match a selector.
    #[track_caller]
    pub fn texts(&mut self, selector: &str) -> Vec<String> {
        let all =
            format!("[...document.querySelectorAll({})].map(e => e.textContent)", json!(selector));
        serde_json::from_value(self.eval(&all)).expect("texts")
    }

    /// Sets the width of the window, in pixels.
    pub fn set_width(&mut self, width: u32) {
        let phone = width < 600;
        let metrics =
            json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Sets the preferred color scheme, `light` or `dark`.
    pub fn set_color_scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    pub fn set_scripts_enabled(&mut self, on: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": !on }));
    }

    /// A PNG of the whole page.
    pub fn screenshot(&mut self) -> Vec<u8> {
        let picture = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        let text = picture["data"].as_str().expect("base 64");
        base64::engine::general_purpose::STANDARD.decode(text).expect("base 64")
    }

    /// Writes a screenshot into the folder `NIX_STORED_TEST_PICTURES`, if it is set.
    pub fn save_screenshot(&mut self, name: &str) {
        if let Some(folder) = std::env::var_os("NIX_STORED_TEST_PICTURES") {
            let picture = self.screenshot();
            let file = Path::new(&folder).join(name).with_extension("png");
            fs::write(file, picture).expect("the screenshot is written");
        }
    }

    /// The URLs requested since the last page was opened.
    pub fn requests(&self) -> Vec<String> {
        let requests =
            self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        requests
            .map(|event| event["params"]["request"]["url"].as_str().expect("a URL").to_owned())
            .collect()
    }

    /// Errors of the browser and of scripts.
    pub fn errors(&self) -> Vec<String> {
        const ERROR_EVENTS: [&str; 4] = [
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Audits.issueAdded",
        ];
        let printed = self
            .events
            .iter()
            .filter(|event| ERROR_EVENTS.iter().any(|method| event["method"] == *method));
        printed.map(|event| event["params"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its child processes hold its standard error, and write into its folder until they notice
        // that it has ended.
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}
