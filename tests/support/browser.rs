//! A real browser, driven as its users do: by wheel, keys and pointer, over WebDriver.
//!
//! A few requests to `chromedriver`, which Debian's package `chromium-driver` brings: no crate is smaller than they are. The browser has a profile of its own, starts
//! without anything in the background, and ends with this value.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::child::{Process, command};
use crate::support::{eventually_blocking, free_port};

/// A browser may take long to start on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nor is one that hangs waited for to end.
const CLOSES: Duration = Duration::from_secs(10);

pub(crate) struct Browser {
    port: u16,
    session: String,
    _driver: Process,
    _profile: TempDir,
}

impl Browser {
    /// # Panics
    ///
    /// If there is no browser: nothing is skipped.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let port = free_port();
        let profile = tempfile::tempdir().expect("the system has a directory for temporary files");
        let mut driver = command(OsStr::new("chromedriver"));
        driver
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let driver = Process::spawn(driver).unwrap_or_else(|error| {
            panic!("chromedriver can't be started ({error}); tests/run installs it, and chromium")
        });
        eventually_blocking(PATIENCE, "chromedriver answers", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        let mut browser = Self {
            port,
            session: String::new(),
            _driver: driver,
            _profile: profile,
        };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,800",
            &profile,
        ];
        let session = browser.ask(
            "POST",
            "/session",
            &json!({ "capabilities": { "alwaysMatch": {
                "goog:chromeOptions": { "args": arguments },
                "goog:loggingPrefs": { "browser": "ALL" },
            } } }),
        );
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.try_ask(method, path, body, PATIENCE);
        let value = answer.unwrap_or_else(|error| panic!("chromedriver answers nothing to {path}: {error}"));
        assert!(value["error"].is_null(), "{path}: {value:#}");
        value
    }

    fn try_ask(&self, method: &str, path: &str, body: &Value, patience: Duration) -> io::Result<Value> {
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(patience))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        // It does not close the connection, whatever it is told: the answer is as long as it says.
        let mut reader = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().map_err(io::Error::other)?;
                }
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer)?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer["value"].take())
    }

    fn tell(&self, what: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{what}", self.session), body)
    }

    pub(crate) fn open(&self, page: &Path) {
        self.tell("url", &json!({ "url": format!("file://{}", page.display()) }));
    }

    /// What the body of a function returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.tell("execute/sync", &json!({ "script": script, "args": [] }))
    }

    pub(crate) fn text(&self, id: &str) -> String {
        let value = self.run(&format!(
            "const e = document.getElementById('{id}'); return e.value ?? e.textContent;"
        ));
        value.as_str().unwrap_or_default().to_owned()
    }

    /// Until an element says something that is wanted.
    #[track_caller]
    pub(crate) fn until(&self, id: &str, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        eventually_blocking(Duration::from_secs(10), &format!("{id}: {what}"), || {
            text = self.text(id);
            wanted(&text)
        });
        text
    }

    fn act(&self, actions: &Value) {
        self.tell("actions", &json!({ "actions": [actions] }));
    }

    pub(crate) fn wheel(&self, x: u32, y: u32, down: i32) {
        self.act(&json!({ "type": "wheel", "id": "wheel", "actions": [
            { "type": "scroll", "x": x, "y": y, "deltaX": 0, "deltaY": down, "origin": "viewport" }
        ] }));
    }

    pub(crate) fn keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
            })
            .collect();
        self.act(&json!({ "type": "key", "id": "keys", "actions": actions }));
    }

    pub(crate) fn point(&self, x: i64, y: i64) {
        self.act(
            &json!({ "type": "pointer", "id": "mouse", "parameters": { "pointerType": "mouse" }, "actions": [
            { "type": "pointerMove", "x": x, "y": y, "duration": 0, "origin": "viewport" }
        ] }),
        );
    }

    pub(crate) fn prefers(&self, scheme: &str) {
        self.tell(
            "goog/cdp/execute",
            &json!({ "cmd": "Emulation.setEmulatedMedia", "params": {
            "features": [{ "name": "prefers-color-scheme", "value": scheme }]
        } }),
        );
    }

    /// What the page has complained of since the last time.
    pub(crate) fn complaints(&self) -> Vec<Value> {
        let log = self.tell("se/log", &json!({ "type": "browser" }));
        let mut log = log.as_array().cloned().unwrap_or_default();
        // That pictures are read is the tests' own doing.
        log.retain(|line| line["source"] != "rendering");
        log
    }
}

/// Also when a test has failed: the browser is not the driver's child alone, and would stay.
impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let session = format!("/session/{}", self.session);
            // One that does not answer has been told all the same.
            let _ = self.try_ask("DELETE", &session, &Value::Null, CLOSES);
        }
    }
}
