//! Parses nginx's configuration into a tree of directives.

use std::{iter::Peekable, rc::Rc, str::Chars};

use crate::{Include, error::NotUnderstood, place::Place, tree::Directive};

/// The maximum nesting depth of blocks. nginx's own blocks are five levels deep.
const DEEPEST: usize = 32;
const MOST_FILES: usize = 4096;

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    End,
}

struct Lexer<'a> {
    characters: Peekable<Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    fn next_character(&mut self) -> Option<char> {
        let next = self.characters.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// Returns the next token and its line. The error describes the fault in the token.
    fn token(&mut self) -> Result<Option<(usize, Token)>, &'static str> {
        loop {
            match self.characters.peek() {
                None => return Ok(None),
                Some('#') => while self.next_character().is_some_and(|c| c != '\n') {},
                Some(c) if c.is_whitespace() => {
                    self.next_character();
                }
                Some(_) => break,
            }
        }
        let line = self.line;
        let token = match self.characters.peek() {
            Some(';') => Token::End,
            Some('{') => Token::Open,
            Some('}') => Token::Close,
            _ => return Ok(Some((line, Token::Word(self.word()?)))),
        };
        self.next_character();
        Ok(Some((line, token)))
    }

    fn word(&mut self) -> Result<String, &'static str> {
        let mut word = String::new();
        if let Some(quote) = self.characters.next_if(|c| ['"', '\''].contains(c)) {
            loop {
                match self.next_character() {
                    None => return Err("a quote is not closed"),
                    Some(c) if c == quote => return Ok(word),
                    Some('\\') => word.extend(self.next_character()),
                    Some(c) => word.push(c),
                }
            }
        }
        while let Some(&c) = self.characters.peek() {
            if c.is_whitespace() || c == ';' || (c == '{' && !word.ends_with('$')) || (c == '}' && !word.contains("${"))
            {
                break;
            }
            self.next_character();
            word.push(c);
            if c == '\\' {
                word.extend(self.next_character());
            }
        }
        Ok(word)
    }
}

/// Reads a file, and the files that it includes.
pub(super) struct Reader<'a> {
    pub(super) include: Include<'a>,
    /// The name of the main file; names in `include` are relative to the main file's directory.
    pub(super) main: String,
    pub(super) files: usize,
    pub(super) unread: Vec<(Place, String, String)>,
}

impl Reader<'_> {
    pub(super) fn read(
        &mut self,
        file: Option<Rc<str>>,
        text: &str,
        depth: usize,
    ) -> Result<Vec<Directive>, NotUnderstood> {
        let mut lexer = Lexer { characters: text.chars().peekable(), line: 1 };
        let mut open: Vec<Directive> = Vec::new();
        let mut current = Vec::new();
        let mut outer: Vec<Vec<Directive>> = Vec::new();
        let mut words = Vec::new();
        let mut start = 1;
        loop {
            let at = |line| Place { line, file: file.clone() };
            let token = lexer.token().map_err(|what| NotUnderstood::at(&at(lexer.line), what))?;
            let Some((line, token)) = token else { break };
            match token {
                Token::Word(word) => {
                    if words.is_empty() {
                        start = line;
                    }
                    words.push(word);
                }
                Token::End if words.is_empty() => return Err(NotUnderstood::at(&at(line), "unexpected `;`")),
                Token::End => {
                    let directive = Directive { place: at(start), words: std::mem::take(&mut words), block: None };
                    self.end(directive, &mut current, depth + outer.len())?;
                }
                Token::Open if words.is_empty() => return Err(NotUnderstood::at(&at(line), "unexpected `{`")),
                Token::Open if outer.len() + depth >= DEEPEST => {
                    return Err(NotUnderstood::at(&at(line), "blocks are nested too deeply"));
                }
                Token::Open => {
                    open.push(Directive { place: at(start), words: std::mem::take(&mut words), block: None });
                    outer.push(std::mem::take(&mut current));
                }
                Token::Close => {
                    let (Some(mut directive), Some(around), true) = (open.pop(), outer.pop(), words.is_empty()) else {
                        return Err(NotUnderstood::at(&at(line), "unexpected `}`"));
                    };
                    directive.block = Some(std::mem::replace(&mut current, around));
                    current.push(directive);
                }
            }
        }
        match open.last() {
            Some(directive) => {
                Err(NotUnderstood::at(&directive.place, format!("`{}` is not closed", directive.name())))
            }
            None if !words.is_empty() => {
                Err(NotUnderstood::at(&Place { line: start, file }, "the last directive has no `;`"))
            }
            None => Ok(current),
        }
    }

    /// Handles a directive that has no block. The function replaces an `include` by the directives in the included
    /// files.
    fn end(&mut self, directive: Directive, into: &mut Vec<Directive>, depth: usize) -> Result<(), NotUnderstood> {
        if directive.name() != "include" {
            into.push(directive);
            return Ok(());
        }
        if depth >= DEEPEST {
            return Err(NotUnderstood::at(&directive.place, "files include each other too deeply"));
        }
        match (self.include)(&self.main, directive.argument()) {
            Ok(files) => {
                for (name, text) in files {
                    self.files += 1;
                    if self.files > MOST_FILES {
                        return Err(NotUnderstood::at(&directive.place, format!("more than {MOST_FILES} files")));
                    }
                    into.append(&mut self.read(Some(name.into()), &text, depth + 1)?);
                }
            }
            Err(why) => self.unread.push((directive.place.clone(), directive.text(), why)),
        }
        Ok(())
    }
}
