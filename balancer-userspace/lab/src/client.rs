//! A client with a session, which builds requests and judges the answers.

use std::{collections::BTreeMap, fmt::Write as _};

/// The number of requests after which a client sends an upload.
const UPLOAD_EVERY: u64 = 10;
/// The size of an upload in bytes.
pub(crate) const UPLOAD: usize = 16 << 10;

/// The effect of a request on the client's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server has begun a session.
    Begun,
    /// The session's counter has increased by one.
    Continued,
    /// The server does not know the session.
    Lost,
    /// The server knows the session only in an old state.
    Stale,
    /// No answer arrived, or the answer is not from the application.
    Failed,
}

/// An HTTP request that a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The HTTP method: `GET` or `POST`.
    pub(crate) method: &'static str,
    /// The path and query of the URL.
    pub(crate) target: String,
    /// The value of the header `Cookie`, if the client has cookies.
    pub(crate) cookie: Option<String>,
    /// The size of the request's body in bytes.
    pub(crate) body: usize,
}

/// An HTTP answer that a client has received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The values of the headers `Set-Cookie`.
    pub(crate) cookies: Vec<String>,
    pub(crate) body: String,
}

/// The text with which the application answers: `SERVER USER COUNT BYTES NEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said<'a> {
    server: &'a str,
    user: &'a str,
    count: u64,
    bytes: usize,
    next: &'a str,
}

impl<'a> Said<'a> {
    fn parse(body: &'a str) -> Option<Self> {
        let mut words = body.split_whitespace();
        let mut word = || words.next();
        let said = Self {
            server: word()?,
            user: word()?,
            count: word()?.parse().ok()?,
            bytes: word()?.parse().ok()?,
            next: word()?,
        };
        words.next().is_none().then_some(said)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    name: String,
    refuses_cookies: bool,
    jar: BTreeMap<String, String>,
    next: String,
    /// The last known value of the session's counter; `None` if the client has no session.
    count: Option<u64>,
    /// The number of later requests that the server may have counted without the client receiving an answer.
    unanswered: u64,
    sent: u64,
    body: usize,
}

impl Client {
    /// Makes a client that has no session yet.
    #[must_use]
    pub(crate) fn new(number: u16, refuses_cookies: bool) -> Self {
        Self {
            name: format!("u{number}"),
            refuses_cookies,
            jar: BTreeMap::new(),
            next: "/".to_owned(),
            count: None,
            unanswered: 0,
            sent: u64::from(number),
            body: 0,
        }
    }

    /// Whether the client has a session and its last request has succeeded.
    #[must_use]
    pub(crate) const fn is_settled(&self) -> bool {
        self.count.is_some() && self.unanswered == 0
    }

    /// Returns the next request: a login if there is no session, otherwise a request that increases the counter, or
    /// sometimes an upload.
    pub(crate) fn request(&mut self) -> Request {
        self.sent += 1;
        let mut cookie = String::new();
        for (name, value) in &self.jar {
            let separator = if cookie.is_empty() { "" } else { "; " };
            // Writing to a string cannot fail.
            let _ = write!(cookie, "{separator}{name}={value}");
        }
        let cookie = (!cookie.is_empty()).then_some(cookie);
        if self.count.is_none() {
            self.body = 0;
            let target = format!("{}?login={}", self.next, self.name);
            return Request { method: "GET", target, cookie, body: 0 };
        }
        let (method, body) = if self.sent.is_multiple_of(UPLOAD_EVERY) { ("POST", UPLOAD) } else { ("GET", 0) };
        self.body = body;
        Request { method, target: self.next.clone(), cookie, body }
    }

    /// Evaluates the answer to a request. The function returns the verdict, and the name of the server that answered.
    pub(crate) fn take(&mut self, answer: Option<&Answer>) -> (Verdict, Option<String>) {
        let Some(answer) = answer else { return (self.failed(), None) };
        let Some(said) = Said::parse(&answer.body).filter(|said| answer.status == 200 && said.bytes == self.body)
        else {
            let mut words = answer.body.split_whitespace();
            // The answer of a failing server also contains the name of the server.
            let server = words.next().filter(|_| words.next() == Some("failed:"));
            return (self.failed(), server.map(str::to_owned));
        };
        self.keep(answer, &said);
        (self.judge(&said), Some(said.server.to_owned()))
    }

    fn failed(&mut self) -> Verdict {
        if self.count.is_some() {
            self.unanswered += 1;
        }
        Verdict::Failed
    }

    fn keep(&mut self, answer: &Answer, said: &Said<'_>) {
        if self.refuses_cookies {
            said.next.clone_into(&mut self.next);
            return;
        }
        for cookie in &answer.cookies {
            let pair = cookie.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.jar.insert(name.trim().to_owned(), value.trim().to_owned());
            }
        }
    }

    fn judge(&mut self, said: &Said<'_>) -> Verdict {
        let known = said.user == self.name;
        let Some(before) = self.count else {
            if !known {
                return Verdict::Failed;
            }
            self.count = Some(said.count);
            self.unanswered = 0;
            return Verdict::Begun;
        };
        let possible = before + 1..=before + 1 + self.unanswered;
        self.unanswered = 0;
        if !known {
            self.count = None;
            self.jar.clear();
            "/".clone_into(&mut self.next);
            return Verdict::Lost;
        }
        self.count = Some(said.count);
        if possible.contains(&said.count) { Verdict::Continued } else { Verdict::Stale }
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Client, UPLOAD, Verdict};

    fn answer(body: &str) -> Answer {
        Answer { status: 200, cookies: vec!["sid=x; Path=/; HttpOnly".to_owned()], body: body.to_owned() }
    }

    fn say(client: &mut Client, body: &str) -> Verdict {
        client.request();
        client.take(Some(&answer(body))).0
    }

    #[test]
    fn when_the_counter_goes_up_then_the_session_goes_on() {
        let mut client = Client::new(1, false);
        let login = client.request();
        assert_eq!((login.target.as_str(), login.cookie), ("/?login=u1", None));
        assert_eq!(client.take(Some(&answer("web1 u1 0 0 /"))), (Verdict::Begun, Some("web1".to_owned())));
        assert!(client.is_settled());
        assert_eq!(client.request().cookie.as_deref(), Some("sid=x"));
        assert_eq!(client.take(Some(&answer("web2 u1 1 0 /"))).0, Verdict::Continued);
        assert_eq!(say(&mut client, "web2 u1 1 0 /"), Verdict::Stale);
        assert_eq!(say(&mut client, "web2 u1 2 0 /"), Verdict::Continued);
        assert_eq!(say(&mut client, "web2 - 0 0 /"), Verdict::Lost);
        let again = client.request();
        assert_eq!((again.target.as_str(), again.cookie), ("/?login=u1", None));
    }

    #[test]
    fn when_the_session_is_another_users_then_it_is_lost() {
        let mut client = Client::new(1, false);
        assert_eq!(say(&mut client, "web1 u1 0 0 /"), Verdict::Begun);
        assert_eq!(say(&mut client, "web1 u2 1 0 /"), Verdict::Lost);
    }

    #[test]
    fn when_a_request_has_no_answer_then_the_server_may_have_counted_it() {
        for (counted, verdict) in
            [(1, Verdict::Continued), (3, Verdict::Continued), (4, Verdict::Stale), (0, Verdict::Stale)]
        {
            let mut client = Client::new(1, false);
            assert_eq!(say(&mut client, "web1 u1 0 0 /"), Verdict::Begun);
            client.request();
            assert_eq!(client.take(None).0, Verdict::Failed);
            client.request();
            let failed = Answer { status: 500, ..answer("web2 failed: no store") };
            assert_eq!(client.take(Some(&failed)), (Verdict::Failed, Some("web2".to_owned())));
            assert!(!client.is_settled());
            assert_eq!(say(&mut client, &format!("web1 u1 {counted} 0 /")), verdict, "{counted}");
        }
    }

    #[test]
    fn when_an_upload_does_not_arrive_whole_then_the_request_has_failed() {
        let mut client = Client::new(8, false);
        assert_eq!(say(&mut client, "web1 u8 0 0 /"), Verdict::Begun);
        let upload = client.request();
        assert_eq!((upload.method, upload.body), ("POST", UPLOAD));
        assert_eq!(client.take(Some(&answer("web1 u8 1 100 /"))).0, Verdict::Failed);
        let whole = format!("web1 u8 2 {UPLOAD} /");
        assert_ne!(say(&mut client, &whole), Verdict::Continued, "nothing was uploaded by the second request");
    }

    #[test]
    fn when_a_client_refuses_cookies_then_it_follows_the_url() {
        let mut client = Client::new(1, true);
        assert_eq!(say(&mut client, "web1 u1 0 0 /;jsessionid=A"), Verdict::Begun);
        let next = client.request();
        assert_eq!((next.target.as_str(), next.cookie), ("/;jsessionid=A", None));
    }
}
