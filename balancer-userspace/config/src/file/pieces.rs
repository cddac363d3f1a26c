//! Parses a configuration file in pieces, so that a reload parses only the pieces that have changed.
//!
//! Each line that begins with `[[service]]` starts a new piece. The parser first checks that each piece, and the text
//! before the first piece, is valid TOML by itself. If all of these texts are valid, no string extends from one piece
//! into the next, and the header of an array of tables means the same at any position. Therefore, the whole file has
//! the same meaning as its pieces in sequence. If a piece is not valid by itself, or if the file contains an error, the
//! parser parses the file as a whole.

use std::sync::Arc;

use foldhash::HashMap;
use memchr::memmem;
use toml::de::DeTable;

use super::{
    findings::Findings,
    section::Section,
    service::{Placed, service},
};
use crate::{
    config::{CheckKind, ServiceConfig},
    validate::Valid,
};

const HEADER: &str = "[[service]]";

/// The pieces of the text that was last parsed, with their services.
#[derive(Debug, Default)]
pub(super) struct Known {
    pieces: HashMap<Box<str>, Piece>,
    /// All services of the text.
    pub(super) valid: Valid,
}

/// The result of parsing one piece.
#[derive(Debug)]
struct Piece {
    service: Arc<Placed>,
    /// The warnings, each with its position in the piece.
    warnings: Vec<(usize, String)>,
}

/// The services of a text, each with the start of its piece.
pub(super) type Services = Vec<(usize, Arc<Placed>)>;

/// Parses the text before the first service, and then the services. `None` if the text must be parsed as a whole; in
/// this case, `findings` is unchanged.
pub(super) fn parse<'i>(
    text: &'i str,
    known: &mut Known,
    findings: &mut Findings<'_>,
) -> Option<(DeTable<'i>, Services)> {
    let pieces = pieces(text);
    let &(first, _) = pieces.first()?;
    let head = valid(&text[..first]).filter(|head| !head.contains_key("service"))?;
    let mut services = Services::with_capacity(pieces.len());
    let mut now = HashMap::default();
    now.reserve(pieces.len());
    for (start, piece) in pieces {
        findings.begin_piece(start);
        if let Some((piece, known)) = known.pieces.remove_entry(piece) {
            known.warnings.iter().for_each(|(at, text)| findings.warn(*at, text.clone()));
            services.push((start, Arc::clone(&known.service)));
            now.insert(piece, known);
            continue;
        }
        let Some(placed) = parse_piece(piece, findings).filter(|_| !findings.has_errors()) else {
            findings.forget_all();
            known.pieces.extend(now);
            return None;
        };
        let service = Arc::new(placed);
        services.push((start, Arc::clone(&service)));
        if !depends_on_more(&service.service) {
            now.insert(piece.into(), Piece { service, warnings: findings.warnings_of_piece() });
        }
    }
    findings.begin_piece(0);
    known.pieces = now;
    Some((head, services))
}

/// The pieces of a text, each with its start position.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let begins_line = |&at: &usize| at == 0 || text.as_bytes().get(at - 1) == Some(&b'\n');
    let starts: Vec<usize> = memmem::find_iter(text.as_bytes(), HEADER).filter(begins_line).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(&start, end)| (start, &text[start..end])).collect()
}

fn valid(text: &str) -> Option<DeTable<'_>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    errors.is_empty().then(|| document.into_inner())
}

/// The only service that a piece contains.
fn parse_piece(piece: &str, findings: &mut Findings<'_>) -> Option<Placed> {
    let mut root = Section::new("the file", 0, valid(piece)?);
    let [section] = <[_; 1]>::try_from(root.tables("service", HEADER, findings)?).ok()?;
    if !root.is_empty() {
        return None;
    }
    service(section, findings)
}

/// Whether a service's validity depends on something outside of the file, namely the user account under which a program
/// runs.
fn depends_on_more(service: &ServiceConfig) -> bool {
    service.checks().any(|check| matches!(check.kind, CheckKind::Exec(_)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::{Known, parse};
    use crate::{
        config::Config,
        file::{Parsed, document, findings::Findings},
    };

    fn outcome(text: &str, config: impl FnOnce(&mut Findings<'_>) -> Option<Config>) -> Parsed {
        let mut findings = Findings::new(Path::new("web.toml"), text);
        let config = config(&mut findings);
        findings.outcome(config)
    }

    fn in_pieces(text: &str, known: &mut Known) -> Parsed {
        outcome(text, |findings| document::config(text, known, findings))
    }

    fn as_a_whole(text: &str) -> Parsed {
        outcome(text, |findings| document::as_a_whole(text, findings))
    }

    fn service(number: u16, more: &str) -> String {
        format!(
            "[[service]]\nname = \"s{number}\"\naddress = \"198.51.100.10:{number}\"\nforwarding = \"nat\"\n{more}\
             [[service.backend]]\nname = \"b\"\naddress = \"10.0.0.1:{number}\"\n"
        )
    }

    #[test]
    fn when_a_file_is_parsed_again_then_only_new_pieces_are_parsed() {
        let text = |weight| {
            let more = format!("weight = {weight}\n");
            format!("interfaces = [\"eth0\"]\n{}{}{more}{}", service(1, ""), service(2, ""), service(3, ""))
        };
        let mut known = Known::default();
        let services = |text: &str, known: &mut Known| {
            let mut findings = Findings::new(Path::new("web.toml"), text);
            parse(text, known, &mut findings).unwrap().1
        };
        let before = services(&text(1), &mut known);
        let after = services(&text(2), &mut known);
        let same = |number: usize| std::sync::Arc::ptr_eq(&before[number].1, &after[number].1);
        assert_eq!([same(0), same(1), same(2)], [true, false, true]);
        assert_eq!(in_pieces(&text(3), &mut known), as_a_whole(&text(3)));
        assert!(in_pieces("[[service]]\nname = 1\n", &mut known).is_err());
        let again = services(&text(3), &mut known);
        assert!(std::sync::Arc::ptr_eq(&before[0].1, &again[0].1), "a file with errors has nothing forgotten");
    }

    #[test]
    fn when_lines_move_then_warnings_are_given_again_at_their_new_lines() {
        let doubtful = service(2, "table_size = 53\n");
        let before = format!("{}{doubtful}", service(1, ""));
        let after = format!("interfaces = [\"eth0\"]\n{}# more\n{doubtful}{}", service(1, ""), service(3, ""));
        let mut known = Known::default();
        for text in [&before, &after, &before] {
            let said = in_pieces(text, &mut known);
            assert_eq!(said, as_a_whole(text));
            assert_eq!(said.unwrap().1.len(), 1);
        }
        assert_eq!(known.pieces.values().filter(|piece| !piece.warnings.is_empty()).count(), 1);
    }

    #[test]
    fn when_a_program_has_an_account_then_it_is_looked_up_each_time() {
        let check = "check = { type = \"exec\", command = [\"/bin/true\"], user = \"nobody\" }\n";
        let text = service(1, check);
        let mut known = Known::default();
        assert_eq!(in_pieces(&text, &mut known), as_a_whole(&text));
        assert!(known.pieces.is_empty());
    }

    /// Parts for random files; some of the parts split a piece in the middle of a string or list.
    fn part() -> impl Strategy<Value = String> {
        let odd = [
            "note = \"\"\"\n[[service]]\n\"\"\"\n",
            "note = \'\'\'\n[[service]]\nname = \"x\"\n\'\'\'\n",
            "# [[service]]\n",
            "\"\"\"\n",
            "[[service]]\n",
            " [[service]]\nname = \"indented\"\naddress = \"198.51.100.11:80\"\nforwarding = \"dsr\"\n",
            "[[service]] # a comment\nname = \"c\"\naddress = \"198.51.100.12:80\"\nforwarding = \"dsr\"\n",
            "[[service]]\r\n",
            "[metrics]\nlisten = \"127.0.0.1:1\"\n",
            "[service]\n",
            "service = []\n",
            "service.name = \"x\"\n",
            "[service.check]\ntype = \"tcp\"\n",
            "weight = 65537\n",
            "table_size = 65536\n",
            "list = [\n[[service]]\n]\n",
            "interfaces = [\"eth0\"]\n",
            "on_exit = \"keep\"",
        ];
        let services = (
            1u16..5,
            prop::sample::select(vec![
                "",
                "remember = \"1h\"\n",
                "remembers = 1\n",
                "table_size = 101\n",
                "table_size = 53\n",
            ]),
        );
        prop_oneof![
            2 => prop::sample::select(odd.to_vec()).prop_map(str::to_owned),
            3 => services.prop_map(|(number, more)| service(number, more)),
        ]
    }

    proptest! {
        #[test]
        fn when_a_file_is_parsed_in_pieces_then_the_result_is_that_of_the_whole(texts in prop::collection::vec(prop::collection::vec(part(), 0..6), 1..4)) {
            let mut known = Known::default();
            for text in texts.into_iter().map(|parts| parts.concat()) {
                prop_assert_eq!(in_pieces(&text, &mut known), as_a_whole(&text), "{}", text);
            }
        }
    }
}
