//! Parses the lines of keepalived's files into a tree of directives.

use super::lines::Line;
use crate::{error::NotUnderstood, place::Place, tree::Directive};

/// The maximum nesting depth of blocks. keepalived's own blocks are four levels deep.
const DEEPEST: usize = 16;

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
}

/// Parses lines into directives. A directive ends at the end of its line, unless the next line opens a block of the
/// directive.
pub(super) fn parse(lines: &[Line]) -> Result<Vec<Directive>, NotUnderstood> {
    let mut current: Vec<Directive> = Vec::new();
    let mut open: Vec<(Directive, Vec<Directive>)> = Vec::new();
    for line in lines {
        let mut words = Vec::new();
        for token in tokens(&line.text).map_err(|what| NotUnderstood::at(&line.place, what))? {
            match token {
                Token::Word(word) => words.push(word),
                Token::Open => {
                    end(&mut words, &line.place, &mut current);
                    let Some(directive) = current.pop_if(|last| last.block.is_none()) else {
                        return Err(NotUnderstood::at(
                            &line.place,
                            "unexpected `{`; the name of a block stands before it",
                        ));
                    };
                    if open.len() >= DEEPEST {
                        return Err(NotUnderstood::at(&line.place, "blocks are nested too deeply"));
                    }
                    open.push((directive, std::mem::take(&mut current)));
                }
                Token::Close => {
                    end(&mut words, &line.place, &mut current);
                    let Some((mut directive, outer)) = open.pop() else {
                        return Err(NotUnderstood::at(&line.place, "unexpected `}`; no block is open"));
                    };
                    directive.block = Some(std::mem::replace(&mut current, outer));
                    current.push(directive);
                }
            }
        }
        end(&mut words, &line.place, &mut current);
    }
    match open.last() {
        Some((directive, _)) => {
            Err(NotUnderstood::at(&directive.place, format!("`{}` is not closed; a `}}` is missing", directive.name())))
        }
        None => Ok(current),
    }
}

fn end(words: &mut Vec<String>, place: &Place, into: &mut Vec<Directive>) {
    if !words.is_empty() {
        into.push(Directive { place: place.clone(), words: std::mem::take(words), block: None });
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), '\\') => word.get_or_insert_default().extend(characters.next()),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            // A reference to an undefined parameter stays unchanged.
            (None, '$') if characters.peek() == Some(&'{') => {
                let word = word.get_or_insert_default();
                word.push(c);
                for c in characters.by_ref() {
                    word.push(c);
                    if c == '}' {
                        break;
                    }
                }
            }
            (None, '{' | '}') => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(if c == '{' { Token::Open } else { Token::Close });
            }
            (None, c) if c.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    tokens.extend(word.map(Token::Word));
    if quote.is_some() { Err("a quote is not closed") } else { Ok(tokens) }
}
