//! From the text of a condition to its tree.

use super::{Expr, Pattern, Relation};

/// An operand as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    Column(String),
    Text(String),
    Number(String),
    Bool(bool),
    Null,
}

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {problem}")]
pub(crate) struct ParseError {
    pub(crate) at: usize,
    pub(crate) problem: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A bare word, in lower case: a keyword or a column.
    Bare(String),
    /// A name in double quotes.
    Quoted(String),
    Text(String),
    Number(String),
    Symbol(&'static str),
}

const SYMBOLS: [&str; 11] = ["<>", "!=", "<=", ">=", "=", "<", ">", "(", ")", ",", "-"];
const KEYWORDS: [&str; 11] = ["and", "or", "not", "is", "null", "in", "like", "between", "true", "false", "escape"];
const DEPTH_MAX: usize = 200;

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ParseError> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        let Some(first) = rest.chars().next() else { return Ok(out) };
        let fail = |problem: &str| ParseError {
            at: text.get(..at).map_or(0, |t| t.chars().count()) + 1,
            problem: problem.to_owned(),
        };
        let (token, after) = if first == '\'' || first == '"' {
            let (inside, after) = quoted(rest, first).ok_or_else(|| fail("a quote is not closed"))?;
            (if first == '"' { Token::Quoted(inside) } else { Token::Text(inside) }, after)
        } else if first.is_ascii_digit() || (first == '.' && rest.chars().nth(1).is_some_and(|c| c.is_ascii_digit())) {
            let (number, after) = rest.split_at(number_length(rest));
            (Token::Number(number.to_owned()), after)
        } else if first.is_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$').unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            (Token::Bare(word.to_lowercase()), after)
        } else if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            (Token::Symbol(symbol), rest.get(symbol.len()..).unwrap_or_default())
        } else {
            return Err(fail(&format!("`{first}` has no meaning here; the guide to filters lists what may be used")));
        };
        out.push((at, token));
        rest = after;
    }
}

/// The inside of a quoted text, in which the quote is doubled, and what follows it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut inside = String::new();
    let mut rest = text.strip_prefix(quote)?;
    loop {
        let (before, after) = rest.split_once(quote)?;
        inside.push_str(before);
        match after.strip_prefix(quote) {
            Some(after) => {
                inside.push(quote);
                rest = after;
            }
            None => return Some((inside, after)),
        }
    }
}

fn number_length(text: &str) -> usize {
    let mut seen_exponent = false;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        let goes_on = c.is_ascii_digit()
            || c == '.'
            || (matches!(c, 'e' | 'E') && !seen_exponent)
            || (matches!(c, '+' | '-') && matches!(before, 'e' | 'E'));
        if !goes_on {
            return at;
        }
        seen_exponent |= matches!(c, 'e' | 'E');
        before = c;
    }
    text.len()
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

type Tree = Expr<Word>;

/// Reads a whole condition.
pub(crate) fn parse(text: &str) -> Result<Tree, ParseError> {
    let mut parser = Parser { text, tokens: tokens(text)?, next: 0, depth: 0 };
    let tree = parser.condition()?;
    match parser.peek() {
        None => Ok(tree),
        Some(_) => Err(parser.fail("AND, OR or the end was expected")),
    }
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn fail(&self, problem: &str) -> ParseError {
        let at = self.tokens.get(self.next).map_or(self.text.len(), |(at, _)| *at);
        let at = self.text.get(..at).map_or(0, |before| before.chars().count()) + 1;
        ParseError { at, problem: problem.to_owned() }
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Bare(bare)) if bare == word);
        self.next += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(here)) if *here == symbol);
        self.next += usize::from(found);
        found
    }

    fn expect_symbol(&mut self, symbol: &str) -> Result<(), ParseError> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.fail(&format!("`{symbol}` was expected"))) }
    }

    fn condition(&mut self) -> Result<Tree, ParseError> {
        let mut tree = self.conjunction()?;
        while self.word("or") {
            tree = Expr::Or(Box::new(tree), Box::new(self.conjunction()?));
        }
        Ok(tree)
    }

    fn conjunction(&mut self) -> Result<Tree, ParseError> {
        let mut tree = self.negation()?;
        while self.word("and") {
            tree = Expr::And(Box::new(tree), Box::new(self.negation()?));
        }
        Ok(tree)
    }

    fn negation(&mut self) -> Result<Tree, ParseError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.fail("the condition is nested too deeply"));
        }
        let tree = if self.word("not") {
            Expr::Not(Box::new(self.negation()?))
        } else if self.symbol("(") {
            let tree = self.condition()?;
            self.expect_symbol(")")?;
            self.is_truth(tree)?
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(tree)
    }

    fn test(&mut self) -> Result<Tree, ParseError> {
        let left = self.operand()?;
        for (symbol, relation) in [
            ("=", Relation::Equal),
            ("<>", Relation::NotEqual),
            ("!=", Relation::NotEqual),
            ("<=", Relation::LessOrEqual),
            (">=", Relation::GreaterOrEqual),
            ("<", Relation::Less),
            (">", Relation::Greater),
        ] {
            if self.symbol(symbol) {
                return Ok(Expr::Compare(relation, left, self.operand()?));
            }
        }
        let before = self.next;
        if self.word("is") {
            let negated = self.word("not");
            if self.word("null") {
                return Ok(negate(Expr::IsNull(left), negated));
            }
            self.next = before;
            return self.is_truth(Expr::Truth(left));
        }
        let negated = self.word("not");
        if self.word("in") {
            return Ok(negate(self.members(&left)?, negated));
        }
        if self.word("like") {
            return Ok(negate(self.like(left)?, negated));
        }
        if self.word("between") {
            let low = self.operand()?;
            if !self.word("and") {
                return Err(self.fail("AND was expected"));
            }
            let high = self.operand()?;
            let from = Expr::Compare(Relation::GreaterOrEqual, left.clone(), low);
            let upto = Expr::Compare(Relation::LessOrEqual, left, high);
            return Ok(negate(Expr::And(Box::new(from), Box::new(upto)), negated));
        }
        if negated {
            return Err(self.fail("IN, LIKE or BETWEEN was expected"));
        }
        Ok(Expr::Truth(left))
    }

    /// `IS [NOT] TRUE`, `IS [NOT] FALSE`, or nothing.
    fn is_truth(&mut self, tree: Tree) -> Result<Tree, ParseError> {
        if !self.word("is") {
            return Ok(tree);
        }
        let negated = self.word("not");
        let wanted = if self.word("true") {
            true
        } else if self.word("false") {
            false
        } else {
            return Err(self.fail("NULL, TRUE or FALSE was expected"));
        };
        Ok(negate(Expr::Is(Box::new(tree), wanted), negated))
    }

    fn members(&mut self, left: &Word) -> Result<Tree, ParseError> {
        self.expect_symbol("(")?;
        let mut tree: Option<Tree> = None;
        loop {
            let test = Expr::Compare(Relation::Equal, left.clone(), self.operand()?);
            tree = Some(match tree {
                None => test,
                Some(before) => Expr::Or(Box::new(before), Box::new(test)),
            });
            if !self.symbol(",") {
                break;
            }
        }
        self.expect_symbol(")")?;
        tree.ok_or_else(|| self.fail("a value was expected"))
    }

    fn like(&mut self, left: Word) -> Result<Tree, ParseError> {
        let Some(Token::Text(pattern)) = self.peek().cloned() else {
            return Err(self.fail("a pattern in quotes was expected"));
        };
        let pattern = Pattern::parse(&pattern).ok_or_else(|| self.fail("the pattern ends in a backslash"))?;
        self.next += 1;
        if self.word("escape") {
            return Err(self.fail("ESCAPE is not supported; the escape character is the backslash"));
        }
        Ok(Expr::Like(left, pattern))
    }

    fn operand(&mut self) -> Result<Word, ParseError> {
        let negative = self.symbol("-");
        let word = match self.peek() {
            Some(Token::Number(number)) if negative => Word::Number(format!("-{number}")),
            _ if negative => return Err(self.fail("a number was expected")),
            Some(Token::Number(number)) => Word::Number(number.clone()),
            Some(Token::Text(text)) => Word::Text(text.clone()),
            Some(Token::Quoted(name)) => Word::Column(name.clone()),
            Some(Token::Bare(word)) => match word.as_str() {
                "true" => Word::Bool(true),
                "false" => Word::Bool(false),
                "null" => Word::Null,
                word if KEYWORDS.contains(&word) => return Err(self.fail("a column or a value was expected")),
                word => Word::Column(word.to_owned()),
            },
            _ => return Err(self.fail("a column or a value was expected")),
        };
        self.next += 1;
        if self.symbol("(") {
            self.next -= 2;
            return Err(self.fail("functions are not part of the subset of SQL that filters may use"));
        }
        Ok(word)
    }
}

fn negate(tree: Tree, negated: bool) -> Tree {
    if negated { Expr::Not(Box::new(tree)) } else { tree }
}
