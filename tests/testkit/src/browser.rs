//! A headless Chromium in a namespace, which tests control over WebDriver (JSON over HTTP).

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    namespace::{Entrance, Namespace},
    process::Process,
};

/// The time limit of the browser's actions.
const PATIENCE: Duration = Duration::from_secs(60);
/// The port on which the driver listens in the namespace.
const PORT: u16 = 9515;
const CURE: &str = "`cargo xtask setup` installs it, as does `apt-get install chromium chromium-driver`";

/// A browser window without a screen. Dropping the value ends the browser.
#[derive(Debug)]
pub struct Browser {
    entrance: Entrance,
    session: String,
    _driver: Process,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser in a namespace. If `scripts` is false, the browser does not run the scripts of pages.
    ///
    /// # Errors
    /// Fails if Chromium or its driver is not installed, or does not start.
    pub fn start(namespace: &Namespace, scripts: bool) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = namespace.command("chromedriver");
        command.arg(format!("--port={PORT}")).env("HOME", profile.path()).env("TMPDIR", profile.path());
        let mut driver = Process::spawn("chromedriver", &mut command, &profile.path().join("driver.log"))
            .with_context(|| format!("no chromedriver: {CURE}"))?;
        let entrance = namespace.entrance();
        let deadline = Instant::now() + PATIENCE;
        while ask(&entrance, "GET", "/status", None).is_err() {
            if let Some(status) = driver.exited()? {
                bail!("chromedriver has ended ({status}): {}", driver.tail(5)?);
            }
            ensure!(Instant::now() < deadline, "chromedriver does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        // In Chromium's settings, 1 allows scripts and 2 blocks them.
        let javascript = if scripts { 1 } else { 2 };
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {
                "args": [
                    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
                    "--no-first-run", "--disable-background-networking", "--disable-component-update",
                    "--disable-sync", "--hide-scrollbars",
                    format!("--user-data-dir={}", profile.path().join("profile").display()),
                ],
                "prefs": {"profile.managed_default_content_settings.javascript": javascript},
            },
        }}});
        let started = ask(&entrance, "POST", "/session", Some(&wanted))
            .with_context(|| format!("chromium does not start; if it is missing: {CURE}"))?;
        let session = started["sessionId"].as_str().context("no session")?.to_owned();
        Ok(Self { entrance, session, _driver: driver, _profile: profile })
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        ask(&self.entrance, "POST", &format!("/session/{}/{path}", self.session), Some(body))
    }

    fn get(&self, path: &str) -> Result<Value> {
        ask(&self.entrance, "GET", &format!("/session/{}/{path}", self.session), None)
    }

    /// Sends a command of the DevTools protocol.
    ///
    /// # Errors
    /// Fails if the browser refuses the command.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Result<Value> {
        self.post("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// Resizes the window to a size in CSS pixels.
    ///
    /// # Errors
    /// Fails if the browser refuses the size.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let parameters = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &parameters).map(drop)
    }

    /// Sets the value of `prefers-color-scheme`: `light` or `dark`.
    ///
    /// # Errors
    /// Fails if the browser refuses the setting.
    pub fn prefer(&self, scheme: &str) -> Result<()> {
        let parameters = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &parameters).map(drop)
    }

    /// Loads the page at `url`.
    ///
    /// # Errors
    /// Fails if the browser cannot load the page.
    pub fn open(&self, url: &str) -> Result<()> {
        self.post("url", &json!({"url": url})).map(drop)
    }

    /// The visible text of the first element that `selector` matches. If the page replaces the element during the
    /// search, the function searches again a few times.
    ///
    /// # Errors
    /// Fails if no element matches.
    pub fn text(&self, selector: &str) -> Result<String> {
        const TIMES: usize = 5;
        let stale = |text: &Result<String>| {
            text.as_ref().is_err_and(|error| error.to_string().contains("stale element reference"))
        };
        let mut text = self.text_once(selector);
        for _ in 1..TIMES {
            if !stale(&text) {
                break;
            }
            text = self.text_once(selector);
        }
        text
    }

    fn text_once(&self, selector: &str) -> Result<String> {
        let found = self.post("element", &json!({"using": "css selector", "value": selector}))?;
        let elements: BTreeMap<String, String> = serde_json::from_value(found)?;
        let element = elements.values().next().with_context(|| format!("no {selector}"))?;
        Ok(self.get(&format!("element/{element}/text"))?.as_str().unwrap_or_default().to_owned())
    }

    /// Runs `script`, the body of a JavaScript function, in the page, and returns the function's result.
    ///
    /// # Errors
    /// Fails if the script throws.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.post("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Presses keys in the focused element; `\u{e004}` is the tab key.
    ///
    /// # Errors
    /// Fails if the browser refuses the keys.
    pub fn press(&self, keys: &str) -> Result<()> {
        let down_and_up = |key: char| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key}));
        let actions: Vec<Value> = keys.chars().flat_map(down_and_up).collect();
        self.post("actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]})).map(drop)
    }

    /// Returns the console messages since the last call, including the browser's own warnings.
    ///
    /// # Errors
    /// Fails if the browser refuses the command.
    pub fn console(&self) -> Result<Vec<String>> {
        let entries = self.post("se/log", &json!({"type": "browser"}))?;
        Ok(entries.as_array().into_iter().flatten().map(|entry| entry["message"].to_string()).collect())
    }

    /// Saves a screenshot of the whole page as a PNG file, regardless of the window's height.
    ///
    /// # Errors
    /// Fails if the browser cannot draw the page, or the file cannot be written.
    pub fn draw(&self, path: &Path) -> Result<()> {
        let drawn = self.devtools("Page.captureScreenshot", &json!({"format": "png"}))?;
        let encoded = drawn["data"].as_str().context("no picture")?;
        std::fs::write(path, BASE64_STANDARD.decode(encoded)?).with_context(|| path.display().to_string())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Err(error) = ask(&self.entrance, "DELETE", &format!("/session/{}", self.session), None) {
            eprintln!("the browser is left to its namespace's end: {error:#}");
        }
    }
}

/// Sends an HTTP request to the browser's driver. Returns the `value` of the answer.
fn ask(entrance: &Entrance, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost:{PORT}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = thread::scope(|scope| {
        let exchange = || -> Result<Vec<u8>> {
            entrance.enter()?;
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = BufReader::new(stream);
            // The driver ignores `Connection: close`, so this function must take the body's length from the header.
            let (mut length, mut line) = (0, String::new());
            while line != "\r\n" {
                line.clear();
                ensure!(answer.read_line(&mut line)? > 0, "the answer ended within its head");
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse()?;
                }
            }
            let mut body = vec![0; length];
            answer.read_exact(&mut body)?;
            Ok(body)
        };
        scope.spawn(exchange).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let mut answer: Value = serde_json::from_slice(&answer).context("not JSON")?;
    let value = answer["value"].take();
    if let Some(error) = value.get("error").filter(|error| error.is_string()) {
        bail!("{method} {path}: {error}: {}", value["message"]);
    }
    Ok(value)
}
