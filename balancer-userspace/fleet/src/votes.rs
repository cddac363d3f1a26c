//! Derives the decision of the fleet from the members' opinions about a backend.

use balancer_control::{
    agreed::{Opinion, Way},
    health::{FailureKind, Verdict},
};

/// Derives the path to a backend and the verdict about it from the members' opinions, each with the member's name, and
/// from the path and verdict `before`. Only members that have an opinion vote. A backend goes down if more than half of
/// the voters see it down, and comes up if more than half see it up; otherwise, the backend keeps its state.
#[must_use]
pub fn agree(opinions: &[(&str, &Opinion)], before: (&Way, &Verdict)) -> (Way, Verdict) {
    let knows = |opinion: &Opinion| !matches!(opinion, Opinion::Waiting);
    let way = if opinions.iter().any(|(_, opinion)| knows(opinion)) { Way::Open } else { before.0.clone() };
    let closed: Vec<&str> = opinions.iter().filter_map(|(_, opinion)| no_way(opinion)).collect();
    let known = opinions.iter().filter(|(_, opinion)| knows(opinion)).count();
    let way = match closed.first() {
        Some(why) if closed.len() * 2 > known => Way::Closed(seen(why, closed.len(), known)),
        // If exactly half of the members report that there is no path, the path stays as before.
        Some(_) if closed.len() * 2 == known && matches!(before.0, Way::Closed(_)) => before.0.clone(),
        Some(_) | None => way,
    };
    (way, verdict(opinions, before.1))
}

fn verdict(opinions: &[(&str, &Opinion)], before: &Verdict) -> Verdict {
    let down: Vec<(FailureKind, &str)> = opinions.iter().filter_map(|(_, opinion)| failure(opinion)).collect();
    let up = opinions.iter().filter(|(_, opinion)| matches!(opinion, Opinion::Up)).count();
    let voters = up + down.len();
    if down.len() * 2 > voters {
        let hard = down.iter().filter(|(kind, _)| *kind == FailureKind::Hard).count();
        let kind = if hard * 2 > down.len() { FailureKind::Hard } else { FailureKind::Soft };
        let reason = down.iter().find(|(of, _)| *of == kind).map_or("", |(_, reason)| reason);
        // If another member has the same opinion, this changes nothing.
        return match before {
            Verdict::Down { kind: known, .. } if *known == kind => before.clone(),
            Verdict::Unknown | Verdict::Up | Verdict::Down { .. } => {
                Verdict::Down { kind, reason: seen(reason, down.len(), voters) }
            }
        };
    }
    match before {
        _ if voters == 0 => before.clone(),
        Verdict::Down { .. } if up * 2 == voters => before.clone(),
        Verdict::Unknown | Verdict::Up | Verdict::Down { .. } => Verdict::Up,
    }
}

fn seen(reason: &str, by: usize, of: usize) -> String {
    if of > 1 { format!("{reason}, seen by {by} of {of}") } else { reason.to_owned() }
}

fn no_way(opinion: &Opinion) -> Option<&str> {
    match opinion {
        Opinion::NoWay(why) => Some(why),
        Opinion::Waiting | Opinion::Unknown | Opinion::Up | Opinion::Down { .. } => None,
    }
}

fn failure(opinion: &Opinion) -> Option<(FailureKind, &str)> {
    match opinion {
        Opinion::Down { kind, reason } => Some((*kind, reason)),
        Opinion::NoWay(why) => Some((FailureKind::Hard, why)),
        Opinion::Waiting | Opinion::Unknown | Opinion::Up => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opinion(letter: char) -> Opinion {
        match letter {
            'w' => Opinion::Waiting,
            '?' => Opinion::Unknown,
            '+' => Opinion::Up,
            's' => Opinion::Down { kind: FailureKind::Soft, reason: "status 503".to_owned() },
            'h' => Opinion::Down { kind: FailureKind::Hard, reason: "connect: refused".to_owned() },
            _ => Opinion::NoWay("no route".to_owned()),
        }
    }

    fn agreed(letters: &str, before: (Way, char)) -> (Way, Verdict) {
        let opinions: Vec<(String, Opinion)> =
            letters.chars().enumerate().map(|(at, letter)| (format!("lb{at}"), opinion(letter))).collect();
        let opinions: Vec<(&str, &Opinion)> = opinions.iter().map(|(name, opinion)| (name.as_str(), opinion)).collect();
        let verdict = match opinion(before.1) {
            Opinion::Up => Verdict::Up,
            Opinion::Down { kind, reason } => Verdict::Down { kind, reason },
            Opinion::Waiting | Opinion::Unknown | Opinion::NoWay(_) => Verdict::Unknown,
        };
        agree(&opinions, (&before.0, &verdict))
    }

    fn word(letters: &str, before: char) -> char {
        match agreed(letters, (Way::Open, before)).1 {
            Verdict::Unknown => '?',
            Verdict::Up => '+',
            Verdict::Down { kind: FailureKind::Soft, .. } => 's',
            Verdict::Down { kind: FailureKind::Hard, .. } => 'h',
        }
    }

    #[test]
    fn when_members_vote_then_the_majority_of_them_decides() {
        for (letters, before, after) in [
            ("", '?', '?'),
            ("???", '+', '+'),
            ("+", '?', '+'),
            ("h", '+', 'h'),
            ("++h", '+', '+'),
            ("+hh", '+', 'h'),
            ("+h", '+', '+'),
            ("+h", 'h', 'h'),
            ("++h", 'h', '+'),
            ("?h", '+', 'h'),
            ("?wh+h", '+', 'h'),
            ("ssh", '+', 's'),
            ("shh", '+', 'h'),
            ("sh", '+', 's'),
            ("xx+", '+', 'h'),
        ] {
            assert_eq!(word(letters, before), after, "{letters} after {before}");
        }
    }

    #[test]
    fn when_one_member_knows_a_way_then_it_is_open_and_closed_once_most_know_none() {
        assert_eq!(agreed("ww", (Way::Unknown, '?')).0, Way::Unknown);
        assert_eq!(agreed("w+", (Way::Unknown, '?')).0, Way::Open);
        assert_eq!(agreed("x++", (Way::Open, '?')).0, Way::Open);
        assert_eq!(agreed("xx+", (Way::Open, '?')).0, Way::Closed("no route, seen by 2 of 3".to_owned()));
        assert_eq!(agreed("x", (Way::Open, '?')).0, Way::Closed("no route".to_owned()));
    }

    #[test]
    fn when_a_backend_is_down_then_the_reason_says_how_many_see_it() {
        let Verdict::Down { reason, .. } = agreed("+hh", (Way::Open, '+')).1 else { panic!("not down") };
        assert_eq!(reason, "connect: refused, seen by 2 of 3");
        let again = agreed("hhh", (Way::Open, 'h')).1;
        assert_eq!(again, Verdict::Down { kind: FailureKind::Hard, reason: "connect: refused".to_owned() });
    }
}
