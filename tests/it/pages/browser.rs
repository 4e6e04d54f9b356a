//! The pages in Chromium.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix_stored::nix::{Sha256Hash, StorePathHash};

use crate::support::browser::Browser;
use crate::support::closures::last_used;
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::nar_of_file;
use crate::support::scratch::Scratch;

/// A page that does not exist, which the browser reports as an error.
const NOTHING: &str = "/browse/nothing";

const WIDTHS: [u32; 3] = [360, 768, 1280];

/// A store path, written to the directory without checks.
struct WrittenPath {
    hash: String,
    name: String,
    nar: String,
}

/// Writes a path and its NAR, with additional lines in the narinfo.
fn write(
    dir: &Path,
    number: u32,
    name: &str,
    references: &[&WrittenPath],
    more: &str,
) -> WrittenPath {
    let mut bytes = [0; 20];
    Noise::new(u64::from(number) + 1)
        .bytes(20)
        .into_iter()
        .zip(&mut bytes)
        .for_each(|(from, to)| *to = from);
    let hash = StorePathHash::new(bytes).to_string();
    let nar = nar_of_file(&vec![b'x'; 1000 * (number as usize % 97 + 1)]);
    let file_hash = Sha256Hash::of(&nar);
    let names: Vec<String> =
        references.iter().map(|path| format!("{}-{}", path.hash, path.name)).collect();
    let narinfo = format!(
        "StorePath: /nix/store/{hash}-{name}\nURL: nar/{0}.nar\nCompression: none\nFileHash: {file_hash}\n\
         FileSize: {1}\nNarHash: {file_hash}\nNarSize: {1}\nReferences: {2}\n{more}",
        file_hash.to_nix32(),
        nar.len(),
        names.join(" "),
    );
    fs::create_dir_all(dir.join("nar")).expect("the folder is created");
    let key = format!("nar/{}.nar", file_hash.to_nix32());
    fs::write(dir.join(&key), nar).expect("the NAR is written");
    fs::write(dir.join(format!("{hash}.narinfo")), narinfo).expect("a narinfo is written");
    WrittenPath { hash, name: name.to_owned(), nar: key }
}

const SIGNATURE: &str =
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

/// A cache with realistic content.
fn realistic_cache(dir: &Path) -> Vec<WrittenPath> {
    let glibc = write(dir, 0, "glibc-2.40-66", &[], "");
    let names = [
        "hello-2.12.2",
        "zlib-1.3.1",
        "openssl-3.4.1",
        "curl-8.13.0-bin",
        "git-2.49.0",
        "python3-3.12.10",
        "nixos-system-kettle-25.05.20250517.292fa7d",
        "linux-6.12.28-modules-shrunk",
        "systemd-257.5",
        "perl5.40.0-libwww-perl-6.72",
        "ripgrep-14.1.1",
        "unit-nix-stored.service",
        "bash-interactive-5.2p37-man",
        "source",
        "rust_serde-1.0.219-lib",
        "grafana-12.0.0",
        "firefox-unwrapped-138.0.4",
    ];
    let mut noise = Noise::new(7);
    let mut written = Vec::new();
    for number in 1..240_u32 {
        let name = match names.get(number as usize - 1) {
            Some(name) => (*name).to_owned(),
            None => format!("{}-{number}", names[number as usize % names.len()]),
        };
        let mut references = vec![&glibc];
        references.extend(written.get(noise.below(number.into()) as usize));
        let more = format!(
            "Deriver: {0}-{name}.drv\nSig: cache.example.org-1:{SIGNATURE}\n",
            "0".repeat(32)
        );
        let path = write(dir, number, &name, &references, &more);
        let ago = Duration::from_secs(noise.below(80 * 86_400).min(noise.below(80 * 86_400)));
        last_used(dir, &format!("{}.narinfo", path.hash), ago);
        last_used(dir, &path.nar, ago / 3);
        written.push(path);
    }
    written.insert(0, glibc);
    written
}

/// Waits until the daemon has built the index.
#[track_caller]
fn wait_for_index(daemon: &Daemon) {
    daemon.wait_until("the index is built", || {
        let (status, body) = daemon.get("/browse");
        assert_eq!(status, 200);
        !String::from_utf8_lossy(&body).contains(super::NOT_YET)
    });
}

fn assert_no_errors(browser: &Browser, daemon: &Daemon) {
    let complaints = browser.errors();
    assert_eq!(complaints.iter().find(|printed| !printed.contains(NOTHING)), None);
    let elsewhere = |url: &&String| !url.starts_with(daemon.url()) && !url.starts_with("data:");
    let requests = browser.requests();
    assert!(requests.len() > 2, "{requests:?}");
    assert_eq!(requests.iter().find(elsewhere), None);
    // Only the document is loaded.
    assert!(
        !requests
            .iter()
            .any(|url| url.contains('.') && url.ends_with("js") || url.ends_with(".ico"))
    );
}

#[track_caller]
fn assert_fits_width(browser: &mut Browser, what: &str) {
    let widths = browser.eval("[document.scrollingElement.scrollWidth, innerWidth]");
    assert!(widths[0].as_u64() <= widths[1].as_u64(), "{what}: {widths}");
}

/// The text with the least contrast to its background, and that contrast (WCAG 2.2, 1.4.3).
const LEAST_CONTRAST: &str = "(() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    const color = getComputedStyle(e).backgroundColor;
    return color.endsWith(', 0)') && e.parentElement ? behind(e.parentElement) : color;
  };
  let least = [99, ''];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (e.closest('svg, script') || !walker.currentNode.data.trim()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least[0]) least = [contrast, walker.currentNode.data];
  }
  return least;
})()";

#[track_caller]
fn assert_contrast(browser: &mut Browser, what: &str) {
    let least = browser.eval(LEAST_CONTRAST);
    assert!(least[0].as_f64() >= Some(4.5), "{what}: {least}");
    let outline = browser.eval(
        "[document.documentElement.lang, document.title != '',
          document.querySelectorAll('h1').length, document.querySelectorAll('main').length,
          document.querySelectorAll('body > header').length, document.querySelectorAll('body > footer').length,
          [...document.querySelectorAll('input')].every(e => e.ariaLabel || e.labels.length),
          [...document.querySelectorAll('svg')].every(e => e.ariaHidden || e.ariaLabel)]",
    );
    assert_eq!(outline, serde_json::json!(["en", true, 1, 1, 1, 1, true, true]), "{what}");
}

#[test]
fn every_page_fits_every_screen_in_light_and_dark_and_asks_for_nothing_else() {
    let scratch = Scratch::new();
    let written = realistic_cache(scratch.path());
    let daemon = Daemon::builder()
        .dir(scratch.path())
        .env("NIX_STORED_MAX_SIZE", "40M")
        .env(
            "NIX_STORED_TRUSTED_PUBLIC_KEYS",
            "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
        )
        .start();
    wait_for_index(&daemon);
    let mut browser = Browser::start();
    let pages = [
        ("front", "/".to_owned()),
        ("list", "/browse".to_owned()),
        ("search", "/browse?q=nixos-system".to_owned()),
        ("path", format!("/browse/{}", written[7].hash)),
        ("needed", format!("/browse/{}", written[0].hash)),
        ("nothing", NOTHING.to_owned()),
    ];
    // The headers of a proxy.
    let headers = serde_json::json!({ "X-Forwarded-Host": "cache.example.org", "X-Forwarded-Proto": "https" });
    browser.call("Network.setExtraHTTPHeaders", serde_json::json!({ "headers": headers }));
    for scheme in ["light", "dark"] {
        browser.set_color_scheme(scheme);
        for width in WIDTHS {
            browser.set_width(width);
            for (name, path) in &pages {
                browser.open(&format!("{}{path}", daemon.url()));
                assert_fits_width(&mut browser, &format!("{name} at {width}"));
                assert_contrast(&mut browser, &format!("{name}, {scheme}"));
                browser.save_screenshot(&format!("{name}-{width}-{scheme}"));
            }
        }
        let paper =
            browser.eval("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] * 1");
        assert_eq!(paper.as_f64() > Some(128.0), scheme == "light", "{paper}");
    }
    browser.open(daemon.url());
    assert_eq!(browser.texts("h1"), ["cache.example.org"]);
    assert_no_errors(&browser, &daemon);
}

#[test]
fn search_references_and_back_work_in_a_browser() {
    let scratch = Scratch::new();
    let written = realistic_cache(scratch.path());
    let daemon = Daemon::builder().dir(scratch.path()).start();
    wait_for_index(&daemon);
    let mut browser = Browser::start();
    // None of this needs a script.
    browser.set_scripts_enabled(false);
    browser.open(daemon.url());
    browser.search("input[name=q]", "HELLO 2.12.2");
    assert_eq!(browser.texts("h1"), ["Paths matching “HELLO 2.12.2”"]);
    let names = browser.texts("tbody a");
    assert_eq!(names[0], "hello-2.12.2");
    assert!(
        names.len() > 10 && names.iter().all(|name| name.starts_with("hello-2.12.2")),
        "{names:?}"
    );
    browser.click("tbody a");
    assert_eq!(browser.texts("h1"), ["hello-2.12.2"]);
    assert_eq!(
        browser.texts(".paste code")[0],
        format!("/nix/store/{}-hello-2.12.2", written[1].hash)
    );
    assert_eq!(browser.texts("h2#references + ul a"), ["glibc-2.40-66"]);
    browser.click("h2#references + ul a");
    assert_eq!(browser.texts("h1"), ["glibc-2.40-66"]);
    // All other paths refer to it.
    assert_eq!(browser.texts("h2#referrers .soft"), ["239 paths"]);
    assert!(browser.texts("h2#referrers + ul a").contains(&"hello-2.12.2".to_owned()));
    browser.search("input[name=q]", &format!("/nix/store/{}-zlib-1.3.1", written[2].hash));
    assert_eq!(browser.texts("h1"), ["zlib-1.3.1"]);
    browser.click("a.brand");
    assert_eq!(browser.texts("h1"), ["127.0.0.1"]);
    assert_eq!(browser.texts("dl.figures dd")[0], "240");
    assert_no_errors(&browser, &daemon);
}

#[test]
fn text_from_uploads_is_escaped() {
    const EVIL: &str =
        "<script>window.got=1</script><img/src=x/onerror=window.got=2>\u{202e}\"'&lt;";
    let scratch = Scratch::new();
    let sig = format!("{EVIL}:{SIGNATURE}");
    let more = format!(
        "Sig: {sig}\nCA: fixed:{EVIL}\nSystem: {EVIL} \u{1b}[31m\u{7f}\nUpstream: javascript:{EVIL}\n",
    );
    let path = write(scratch.path(), 3, "a=b?c+d._-e", &[], &more);
    let name = EVIL.replace('/', "\\");
    let listing = serde_json::json!({ "version": 1, "root": { "type": "directory", "entries": {
        (EVIL): { "type": "regular", "size": 1 },
        "link": { "type": "symlink", "target": EVIL },
        "to": { "type": "symlink", "target": format!("/nix/store/{}-x/{EVIL}", "0".repeat(32)) },
        "bin": { "type": "directory", "entries": { (name): { "type": "regular", "executable": true } } },
    } } });
    fs::write(scratch.join(&format!("{}.ls", path.hash)), listing.to_string()).expect("written");
    let daemon = Daemon::builder().dir(scratch.path()).start();
    wait_for_index(&daemon);
    let mut browser = Browser::start();
    for width in [360, 1280] {
        browser.set_width(width);
        browser.open(&format!("{}/browse/{}", daemon.url(), path.hash));
        assert_eq!(browser.texts("h1"), ["a=b?c+d._-e"]);
        assert_eq!(
            browser.eval("document.querySelectorAll('img, iframe, object, embed').length"),
            0
        );
        assert_eq!(browser.eval("document.scripts.length"), 1);
        assert_eq!(browser.eval("window.got === undefined"), true);
        let handlers = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => \
             a.name.startsWith('on') || a.value.trim().startsWith('javascript:')).length";
        assert_eq!(browser.eval(handlers), 0);
        let shown = EVIL.replace('\u{202e}', "\\u{202e}");
        let facts = browser.texts("dl.facts dd");
        for expected in [
            format!("javascript:{shown}"),
            shown.clone(),
            format!("fixed:{shown}"),
            format!("{shown} \\u{{1b}}[31m\\u{{7f}}"),
        ] {
            assert!(facts.contains(&expected), "{expected} in {facts:?}");
        }
        let files = browser.texts("table.files .name");
        assert!(files.iter().any(|file| file == &shown), "{files:?}");
        assert!(files.iter().any(|file| file == &format!("link → {shown}")), "{files:?}");
        // The name cannot be typed in a shell, so no command is shown.
        assert!(!browser.texts("main").concat().contains("--command"));
        assert_fits_width(&mut browser, "odd names");
        browser.save_screenshot(&format!("odd-{width}"));
    }
    browser.open(&format!(
        "{}/browse?q=%3Cscript%3Ewindow.got%3D1%3C%2Fscript%3E%22%3E%3Cimg%20src%3Dx%3E",
        daemon.url()
    ));
    assert_eq!(
        browser.eval("document.querySelector('input[name=q]').value"),
        "<script>window.got=1</script>\"><img src=x>"
    );
    assert_eq!(
        browser.eval("document.querySelectorAll('img').length + document.scripts.length"),
        1
    );
    assert_no_errors(&browser, &daemon);
}

#[test]
fn a_button_copies_the_commands_where_scripts_run() {
    let daemon = Daemon::start();
    wait_for_index(&daemon);
    let mut browser = Browser::start();
    browser.call("Emulation.setFocusEmulationEnabled", serde_json::json!({ "enabled": true }));
    browser.open(daemon.url());
    assert_eq!(browser.texts(".paste button").len(), browser.texts("pre").len());
    browser.eval("document.querySelector('.paste button').click()");
    let copied = browser.eval(
        "new Promise(done => { const look = () => { const text = document.querySelector('.paste button').textContent; \
         text == 'Copy' ? requestAnimationFrame(look) : done([text, getSelection().toString()]) }; look(); })",
    );
    assert_eq!(copied[0], "Copied");
    assert!(copied[1].as_str().is_some_and(|text| text.starts_with(&format!("extra-substituters = {}", daemon.url()))), "{copied}");
    assert_eq!(browser.errors(), [""; 0]);
    browser.set_scripts_enabled(false);
    browser.open(daemon.url());
    assert_eq!(browser.texts(".paste button"), [""; 0]);
}
