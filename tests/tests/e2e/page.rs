//! Tests of the status page in a browser.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    browser::Browser,
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};
use serde_json::Value;

const URL: &str = "http://127.0.0.1:9660/";

/// Finds the smallest contrast between text and background on the page, computed from the relative luminance of text
/// and background.
const CONTRAST: &str = r#"
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const luminance = (color) => {
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
        .map((byte) => byte / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
let least = [21, "nothing"];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("script, style, svg, [hidden]")) continue;
    let behind = element;
    while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind ?? document.body).backgroundColor]
        .map(luminance).sort((a, b) => b - a);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < least[0]) least = [contrast, element.outerHTML];
}
return least;"#;

/// Checks the structure that a screen reader needs: the headings are in order, every table has a caption and scopes,
/// and every region has a name.
const STRUCTURE: &str = r#"
const all = (selector) => [...document.querySelectorAll(selector)];
const wrong = [];
let level = 0;
for (const heading of all("h1, h2, h3, h4")) {
    const next = Number(heading.nodeName[1]);
    if (next > level + 1) wrong.push(heading.outerHTML);
    level = next;
}
for (const table of all("table")) if (!table.caption?.textContent.trim()) wrong.push(table.outerHTML.slice(0, 200));
for (const cell of all("th")) if (!cell.scope) wrong.push(cell.outerHTML);
for (const region of all("section"))
    if (!document.getElementById(region.getAttribute("aria-labelledby"))?.textContent) wrong.push(region.outerHTML.slice(0, 200));
for (const drawing of all("svg"))
    if (drawing.getAttribute("aria-hidden") !== "true" && !drawing.getAttribute("aria-label")) wrong.push(drawing.outerHTML);
const ids = all("[id]").map((element) => element.id);
if (new Set(ids).size !== ids.length) wrong.push("an id twice");
if (!document.documentElement.lang || !document.title) wrong.push("no language or title");
return wrong;"#;

fn site(remember: &'static str) -> Site {
    site_beside(remember, 0)
}

/// Starts a site with `crowd` additional services.
fn site_beside(remember: &'static str, crowd: u16) -> Site {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, _| {
        settings.remember = remember;
        settings.crowd = crowd;
        settings.check = r#"{ type = "http", path = "/healthz", interval = "1s", timeout = "500ms" }"#.to_owned();
        Ok(())
    })
    .unwrap();
    for number in 1..=3 {
        site.wait_state(number, &["up"]).unwrap();
    }
    site.homes(Family::V4, 1..=60).unwrap();
    site
}

/// Returns the text of a backend's row in the page's table.
fn row(browser: &Browser, backend: &str) -> String {
    browser.text(&format!("[id='backend-web/{backend}']")).unwrap()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn when_a_backend_drains_then_the_page_shows_it_without_a_reload() {
    let mut site = site("3h");
    let browser = Browser::start(site.topology().balancer(), true).unwrap();
    browser.resize(1280, 900).unwrap();
    browser.open(URL).unwrap();
    assert_eq!(browser.text("h2").unwrap(), "web");
    for backend in ["web1", "web2", "web3"] {
        assert!(row(&browser, backend).contains("up"), "{}", row(&browser, backend));
    }
    assert!(browser.text(".summary").unwrap().contains("none in trouble"));
    wait_for("the script", || browser.text("#link").unwrap() == "Live");

    // An update must not change the reader's focus, the scroll position, or the document itself.
    browser.run("window.here = 1; document.querySelector('#pause').focus(); window.scrollTo(0, 40);").unwrap();
    site.cli(&["backend", "drain", "web/web2"]).unwrap();
    wait_for("web2 to drain on the page", || row(&browser, "web2").contains("draining"));
    assert!(row(&browser, "web1").contains("up"));
    // Other backends have temporarily taken over web2's slots. The pictures of the lookup table and of the last hour
    // show the drain.
    let pictures =
        "return [document.querySelectorAll('.slots path').length, document.querySelectorAll('.event').length,
        document.querySelectorAll('.legend li').length, document.querySelector('.maps figcaption').textContent]";
    let pictures = browser.run(pictures).unwrap();
    assert_eq!((&pictures[0], &pictures[2]), (&2.into(), &3.into()), "{pictures}");
    assert!(pictures[1].as_u64().unwrap() >= 4, "{pictures}");
    assert!(pictures[3].as_str().unwrap().contains("stands in for a backend"), "{pictures}");
    assert!(browser.text(".summary").unwrap().contains("web/web2 draining"));
    let there = "return [window.here, document.activeElement.id, window.scrollY, document.title]";
    assert_eq!(browser.run(there).unwrap(), serde_json::json!([1, "pause", 40, "1 backend not up – balancer"]));

    // While the reader has paused the page, the page does not change.
    browser.run("document.querySelector('#pause').click()").unwrap();
    assert_eq!(browser.text("#link").unwrap(), "Paused");
    site.cli(&["backend", "ready", "web/web2"]).unwrap();
    site.wait_state(2, &["up"]).unwrap();
    let frozen = browser.run("return document.querySelector('main').innerHTML").unwrap();
    // This timer ends after the timer of the page's next update would have ended, because the page updates itself every
    // two seconds.
    browser.run("window.later = false; setTimeout(() => { window.later = true; }, 3000);").unwrap();
    wait_for("the time of the next update", || browser.run("return window.later").unwrap() == true);
    assert_eq!(browser.run("return document.querySelector('main').innerHTML").unwrap(), frozen);
    browser.run("document.querySelector('#pause').click()").unwrap();
    wait_for("web2 to be up on the page", || row(&browser, "web2").contains("up"));
    assert_eq!(browser.console().unwrap(), Vec::<String>::new());
}

/// Checks that the page is readable on narrow and wide screens, in light and dark colours.
fn assert_readable(browser: &Browser, url: &str) {
    for width in [320, 360, 768, 1920] {
        browser.resize(width, 800).unwrap();
        browser.open(url).unwrap();
        let wide = browser.run("return document.documentElement.scrollWidth").unwrap();
        assert!(wide.as_u64().unwrap() <= u64::from(width), "{wide} at {width}");
        for scheme in ["light", "dark"] {
            browser.prefer(scheme).unwrap();
            let least = browser.run(CONTRAST).unwrap();
            println!("{url} {width} {scheme}: contrast {least}");
            assert!(least[0].as_f64().unwrap() >= 4.5, "{least}");
        }
        assert_eq!(browser.run(STRUCTURE).unwrap(), Value::Array(Vec::new()));
    }
}

#[test]
fn when_there_are_many_services_then_there_is_an_overview_and_a_page_each() {
    let site = site_beside("3h", 6);
    let browser = Browser::start(site.topology().balancer(), true).unwrap();
    assert_readable(&browser, URL);
    wait_for("all known clients to be counted", || {
        let shown = browser.text("[id='row-web']").unwrap();
        shown.contains("3 of 3 up") && shown.contains("60")
    });
    assert!(browser.text("[id='row-crowd5']").unwrap().contains("10 of 10 up"));
    browser.run("document.querySelector('[id=\"row-web\"] a').click()").unwrap();
    wait_for("the service's page", || browser.text("h2").is_ok_and(|heading| heading == "web"));
    wait_for("the script", || browser.text("#link").unwrap() == "Live");
    // The browser stays on the page of the service, which follows changes.
    site.cli(&["backend", "drain", "web/web2"]).unwrap();
    wait_for("web2 to drain on the page", || row(&browser, "web2").contains("draining"));
    assert_readable(&browser, &format!("{URL}?service=crowd1"));
    assert_eq!(browser.console().unwrap(), Vec::<String>::new());
}

#[test]
fn when_the_page_is_read_by_any_means_then_it_is_accessible() {
    let mut site = site("3h");
    site.kill_backend(3).unwrap();
    site.wait_state(3, &["down"]).unwrap();
    let browser = Browser::start(site.topology().balancer(), true).unwrap();
    assert_readable(&browser, URL);
    // The Tab key must reach the link to the numbers, the link to the metrics, and the button, in this order.
    browser.open(URL).unwrap();
    let focus = |browser: &Browser| {
        browser.press("\u{e004}").unwrap();
        browser.run("return document.activeElement.textContent").unwrap()
    };
    assert_eq!([focus(&browser), focus(&browser), focus(&browser)], ["Skip to the numbers", "metrics", "Pause"]);
    assert_eq!(browser.console().unwrap(), Vec::<String>::new());
}

#[test]
fn when_scripts_are_off_then_the_page_has_the_numbers() {
    let site = site("0s");
    let browser = Browser::start(site.topology().balancer(), false).unwrap();
    browser.open(URL).unwrap();
    assert_eq!(browser.text("#link").unwrap(), "Reload for newer numbers");
    let status = site.status().unwrap();
    for backend in &status.services[0].backends {
        let shown = row(&browser, &backend.name);
        for number in [backend.connections.to_string(), backend.address.clone(), backend.state.clone()] {
            assert!(shown.contains(&number), "{number} is not in {shown}");
        }
    }
}

/// The command in the next line draws the pictures of the documentation, which takes 14 minutes.
/// `BALANCER_PICTURES=docs/src cargo test -p balancer-tests --test e2e pictures -- --ignored`
#[test]
#[ignore = "draws the pictures of the documentation"]
fn when_pictures_are_asked_for_then_they_are_drawn() {
    let directory = env::var_os("BALANCER_PICTURES").unwrap();
    // The test runs in the directory of its package, but the path in `BALANCER_PICTURES` is relative to the repository.
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
    let mut site = site("3h");
    let began = Instant::now();
    let mut events = vec![
        (300, vec!["backend", "maint", "web/web1"]),
        (480, vec!["backend", "ready", "web/web1"]),
        (780, vec!["backend", "drain", "web/web2"]),
    ]
    .into_iter();
    let mut next = events.next();
    let mut round = 0;
    while began.elapsed() < Duration::from_secs(840) {
        let clients = 40 + 30 * (round % 4) + round / 4;
        site.homes(Family::V4, 1..=60 + clients).unwrap();
        if let Some((_, arguments)) = next.take_if(|(after, _)| began.elapsed() > Duration::from_secs(*after)) {
            site.cli(&arguments).unwrap();
            next = events.next();
        }
        round += 1;
        // The pace of the clients in the pictures.
        thread::sleep(Duration::from_secs(1));
    }
    site.kill_backend(3).unwrap();
    site.wait_state(3, &["down"]).unwrap();
    let browser = Browser::start(site.topology().balancer(), true).unwrap();
    for (scheme, width, name) in [("light", 1200, "light"), ("dark", 1200, "dark")] {
        browser.prefer(scheme).unwrap();
        browser.resize(width, 800).unwrap();
        browser.open(URL).unwrap();
        wait_for("the script", || browser.text("#link").unwrap() == "Live");
        let height = browser.run("return document.documentElement.scrollHeight").unwrap().as_u64().unwrap();
        browser.resize(width, u32::try_from(height).unwrap()).unwrap();
        browser.draw(&directory.join(format!("page-{name}.png"))).unwrap();
    }
}
