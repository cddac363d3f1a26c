//! The DNS messages of a `dns` check: a query, and the header and question of an answer.

use balancer_config::config::{DnsCheck, Rcode};

const HEADER: usize = 12;
/// The header flag by which a query requests recursion. A server that offers no recursion also answers such a query.
const RECURSION_DESIRED: u16 = 1 << 8;
const IS_ANSWER: u8 = 1 << 7;
const OPCODE: u8 = 0x78;
const CODE: u8 = 0x0f;
const INTERNET: u16 = 1;

/// A DNS query, and those bytes of the query that an answer has to repeat.
pub(super) struct Query {
    message: Vec<u8>,
}

/// The content of a DNS answer, as far as a check needs it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An answer to the query: the response code, and the name of the code, if the code has a name.
    Code(u8, Option<Rcode>),
    /// A DNS message that does not answer the query.
    Other,
    /// Bytes that are not a DNS message.
    Malformed,
}

impl Query {
    pub(super) fn new(id: u16, check: &DnsCheck) -> Self {
        let mut message = Vec::with_capacity(64);
        let [questions, answers, authorities, additional] = [1, 0, 0, 0];
        for field in [id, RECURSION_DESIRED, questions, answers, authorities, additional] {
            message.extend_from_slice(&u16::to_be_bytes(field));
        }
        for label in check.name.labels() {
            // The conversion cannot fail, because a label has at most 63 bytes.
            message.push(u8::try_from(label.len()).unwrap_or(0));
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&check.record.number().to_be_bytes());
        message.extend_from_slice(&INTERNET.to_be_bytes());
        Self { message }
    }

    pub(super) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Parses an answer to the query. The answer of a server that does not understand the query may lack the question.
    pub(super) fn read(&self, answer: &[u8]) -> Answer {
        let (Some((header, rest)), Some((asked, question))) =
            (answer.split_first_chunk::<HEADER>(), self.message.split_first_chunk::<HEADER>())
        else {
            return Answer::Malformed;
        };
        let [id0, id1, flags, more, questions0, questions1, ..] = *header;
        let is_ours = [id0, id1] == asked[..2] && flags & IS_ANSWER != 0 && flags & OPCODE == 0;
        let number = more & CODE;
        let code = Rcode::from_number(number);
        let repeats = match u16::from_be_bytes([questions0, questions1]) {
            0 => number != Rcode::NoError as u8,
            1 => rest.get(..question.len()).is_some_and(|repeated| repeated.eq_ignore_ascii_case(question)),
            _ => false,
        };
        if is_ours && repeats { Answer::Code(number, code) } else { Answer::Other }
    }
}

#[cfg(test)]
mod tests {
    use balancer_config::config::Record;

    use super::*;

    fn query() -> Query {
        let name = "www.Example.com".parse().unwrap();
        Query::new(0x1234, &DnsCheck { port: None, name, record: Record::Aaaa, expect_rcode: vec![Rcode::NoError] })
    }

    /// Makes an answer that contains only the repeated question.
    fn answer(code: u8) -> Vec<u8> {
        let mut answer = query().message;
        answer[2] |= IS_ANSWER;
        answer[3] = 0x80 | code;
        answer
    }

    #[test]
    fn when_a_query_is_made_then_it_is_as_the_standard_has_it() {
        let expected = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07Example\x03com\x00\x00\x1c\x00\x01";
        assert_eq!(query().message(), expected);
    }

    #[test]
    fn when_an_answer_repeats_id_and_question_then_the_code_counts() {
        assert_eq!(query().read(&answer(0)), Answer::Code(0, Some(Rcode::NoError)));
        assert_eq!(query().read(&answer(3)), Answer::Code(3, Some(Rcode::NxDomain)));
        assert_eq!(query().read(&answer(15)), Answer::Code(15, None));
        let mut longer = answer(0).to_ascii_lowercase();
        longer.extend_from_slice(b"\xc0\x0c and records");
        longer[7] = 1;
        assert_eq!(
            query().read(&longer),
            Answer::Code(0, Some(Rcode::NoError)),
            "records, and letters in another case"
        );
    }

    #[test]
    fn when_id_or_question_are_others_then_it_is_no_answer() {
        let changed = |at: usize, to: u8| {
            let mut answer = answer(0);
            answer[at] = to;
            query().read(&answer)
        };
        assert_eq!(changed(1, 0x35), Answer::Other, "another id");
        assert_eq!(changed(2, 0x01), Answer::Other, "a query");
        assert_eq!(changed(2, 0xa1), Answer::Other, "another opcode");
        assert_eq!(changed(5, 2), Answer::Other, "two questions");
        assert_eq!(changed(5, 0), Answer::Other, "no question");
        assert_eq!(changed(13, b'x'), Answer::Other, "another name");
        assert_eq!(changed(30, 1), Answer::Other, "another type");
        assert_eq!(query().read(&answer(0)[..20]), Answer::Other, "cut within the question");
        assert_eq!(query().read(&answer(0)[..11]), Answer::Malformed);
    }

    #[test]
    fn when_a_server_does_not_understand_the_query_then_it_need_not_repeat_it() {
        let mut refused = answer(1)[..HEADER].to_vec();
        refused[5] = 0;
        assert_eq!(query().read(&refused), Answer::Code(1, Some(Rcode::FormErr)));
    }

    #[test]
    fn when_an_answer_is_cut_then_it_is_none() {
        let whole = answer(0);
        for length in 0..whole.len() {
            assert!(!matches!(query().read(&whole[..length]), Answer::Code(..)), "{length} bytes");
        }
    }
}
