//! The chapters of the book for operators, which `balancer help TOPIC` and the manual pages show.

pub mod document;
pub mod terminal;

/// A chapter of the book in `docs/src`.
#[derive(Debug)]
pub struct Chapter {
    /// The topic of the chapter, which is also the name of the file.
    pub name: &'static str,
    /// The manual section in which the chapter's page is.
    pub section: u8,
    /// A short description of the topic.
    pub about: &'static str,
    /// The Markdown of the chapter.
    pub text: &'static str,
}

macro_rules! chapters {
    ($($name:literal $section:literal $about:literal)*) => {
        &[$(Chapter {
            name: $name,
            section: $section,
            about: $about,
            text: include_str!(concat!("../../../docs/src/", $name, ".md")),
        }),*]
    };
}

/// All chapters, in the order of the book.
pub const CHAPTERS: &[Chapter] = chapters! {
    "getting-started" 7 "the demo; the first start on a real interface"
    "requirements" 7 "kernels, privileges, drivers"
    "concepts" 7 "how a client is assigned to a backend; states of backends"
    "memory" 7 "known clients, drains, failback; sizing the client table"
    "rules" 7 "pin, spread or deny the clients of a prefix"
    "operations" 7 "install, add a server, deploy, fail over, remove, upgrade"
    "moving" 7 "moving from nginx, HAProxy, keepalived and IPVS"
    "simulation" 7 "where the clients of an access log would go"
    "commands" 7 "the command line: options, exit codes, signals, files"
    "restarts" 7 "the state file; restarts that stop no packet"
    "several-balancers" 7 "ready or not; taking one out; VIPs for routing daemons"
    "configuration" 5 "every key of the file; what changing it does to clients"
    "discovery" 7 "backends that a file or DNS names"
    "forwarding" 7 "dsr, nat, ipip, gue: setting up backends, MTU, limits"
    "packets" 7 "what happens to each kind of packet"
    "health-checks" 7 "types, timing, hard and soft failures, slow start"
    "statistics" 7 "stickiness, balance, heavy clients"
    "metrics" 7 "metrics for Prometheus; the page"
    "api" 7 "HTTP and JSON over the control socket"
    "troubleshooting" 7 "error messages, dropped packets, symptoms"
};

#[must_use]
pub fn chapter(name: &str) -> Option<&'static Chapter> {
    CHAPTERS.iter().find(|chapter| chapter.name == name)
}

/// Returns the chapter to which a link points.
fn linked(target: &str) -> Option<&'static Chapter> {
    let (file, _) = target.split_once('#').unwrap_or((target, ""));
    chapter(file.strip_suffix(".md")?)
}

impl Chapter {
    /// Parses the Markdown of the chapter. `refer` describes how readers find a chapter to which a link points.
    pub fn document(&self, refer: impl Fn(&Self) -> String) -> document::Document {
        document::parse(self.text, |target| match linked(target) {
            Some(chapter) if chapter.name != self.name => Some(refer(chapter)),
            Some(_) => None,
            None => target.starts_with("http").then(|| target.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_topics_are_listed_then_they_are_the_books_chapters_in_order() {
        let summary = include_str!("../../../docs/src/SUMMARY.md");
        let places: Vec<_> = CHAPTERS.iter().map(|chapter| summary.find(&format!("({}.md)", chapter.name))).collect();
        assert!(places.iter().all(Option::is_some), "{places:?}");
        assert!(places.is_sorted(), "{places:?}");
    }
}
