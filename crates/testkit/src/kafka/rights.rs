//! A broker with an authorizer, and the rights that a table in the documentation names: read from there, so that what is
//! said and what is tested are one.
//!
//! Rights are given over the broker's own protocol (`CreateAcls`, `DescribeAcls`), for a test gives hundreds of them and
//! Kafka's own tool takes a second for each.

use super::Kafka;
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// How long the broker may take until it knows a right that it was given.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);

/// The kinds of things that rights are about, in the protocol's numbers.
const KINDS: [(&str, i8); 3] = [("topic", 2), ("group", 3), ("transactional id", 5)];

/// What may be done with them.
const OPERATIONS: [(&str, i8); 8] = [
    ("Read", 3),
    ("Write", 4),
    ("Create", 5),
    ("Delete", 6),
    ("Alter", 7),
    ("Describe", 8),
    ("DescribeConfigs", 10),
    ("AlterConfigs", 11),
];

/// How a right is given, in the protocol's numbers.
const FORBIDDEN: i8 = 2;
const ALLOWED: i8 = 3;

/// One right, as a table names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// `topic`, `group` or `transactional id`.
    pub kind: String,
    /// The name with the prefix as it stands in the table; with `*` at its end it is what names begin with.
    pub name: String,
    /// What may be done.
    pub operation: String,
}

impl Right {
    /// The same with names in the places that a table has for them, like `<prefix>`.
    #[must_use]
    pub fn with(&self, places: &[(&str, &str)]) -> Self {
        let name = places.iter().fold(self.name.clone(), |name, (place, value)| name.replace(place, value));
        Self { name, ..self.clone() }
    }
}

/// The rights of everybody in the table under a heading: lines of the form `| who | kind | name | operations | … |`.
///
/// # Panics
/// When there is no such table, or it says what is no right.
pub fn table(page: &str, heading: &str) -> Vec<(String, Right)> {
    let section = page.split_once(heading).unwrap_or_else(|| panic!("the page has no {heading:?}")).1;
    let lines = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let bare = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let mut rights = Vec::new();
    for line in lines.skip(2) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let [who, kind, name, operations, ..] = cells.as_slice() else { panic!("not a row of rights: {line}") };
        let (who, kind, name) = (bare(who), bare(kind), bare(name));
        assert!(KINDS.iter().any(|(known, _)| *known == kind), "not a kind of resource: {kind} in {line}");
        for operation in operations.split(',').map(bare) {
            assert!(OPERATIONS.iter().any(|(known, _)| *known == operation), "not an operation: {operation} in {line}");
            rights.push((who.clone(), Right { kind: kind.clone(), name: name.clone(), operation }));
        }
    }
    assert!(!rights.is_empty(), "the table under {heading:?} has no rows");
    rights
}

impl Kafka {
    /// Starts a broker like [`Kafka::secured`] that lets these users in by PLAIN with [`super::PASSWORD`], and lets each do
    /// what it was allowed and nothing else; [`super::USER`] may do everything.
    pub fn authorizing(certificates: &crate::tls::Certificates, users: &[String]) -> Option<Self> {
        let users = users.iter().fold(String::new(), |all, user| format!("{all} user_{user}=\"{}\"", super::PASSWORD));
        let everybody = format!("User:{};User:ANONYMOUS", super::USER);
        let login = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_{}=\"{}\"{users};",
            super::USER,
            super::PASSWORD
        );
        let settings = [
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
            // The broker itself comes without a password, from within.
            ("super.users", everybody.as_str()),
            ("allow.everyone.if.no.acl.found", "false"),
            ("listener.name.out.plain.sasl.jaas.config", login.as_str()),
        ];
        Self::with(&settings, Some(certificates))
    }

    /// Gives a user rights, and returns once the broker knows of them.
    ///
    /// # Panics
    /// When the broker does not take them.
    pub fn allow(&self, user: &str, rights: &[Right]) {
        self.settle(user, rights, ALLOWED);
    }

    /// Takes from a user what he was allowed.
    ///
    /// # Panics
    /// As [`Kafka::allow`].
    pub fn forbid(&self, user: &str, rights: &[Right]) {
        self.settle(user, rights, FORBIDDEN);
    }

    fn settle(&self, user: &str, rights: &[Right], how: i8) {
        let done = self.give(&format!("User:{user}"), rights, how);
        done.unwrap_or_else(|error| panic!("rights of {user} cannot be settled: {error}\n{}", self.log()));
    }

    fn give(&self, principal: &str, rights: &[Right], how: i8) -> io::Result<()> {
        if rights.is_empty() {
            return Ok(());
        }
        let inside = self.inside.ok_or_else(|| io::Error::other("the broker has no authorizer"))?;
        let mut stream = connect(inside)?;
        let before = known(&mut stream, principal)?;
        let mut body = Vec::new();
        body.extend((rights.len() as i32).to_be_bytes());
        for right in rights {
            let (prefix, is_prefix) = match right.name.strip_suffix('*') {
                Some(prefix) => (prefix, true),
                None => (right.name.as_str(), false),
            };
            body.extend(number(&KINDS, &right.kind).to_be_bytes());
            string(&mut body, prefix);
            body.extend(if is_prefix { 4i8 } else { 3 }.to_be_bytes());
            string(&mut body, principal);
            string(&mut body, "*");
            body.extend(number(&OPERATIONS, &right.operation).to_be_bytes());
            body.extend(how.to_be_bytes());
        }
        let answer = ask(&mut stream, 30, &body)?;
        let mut rest = answer.get(4..).unwrap_or_default();
        for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
            let code = i16::from_be_bytes(take(&mut rest)?);
            let said = text(&mut rest)?;
            if code != 0 {
                return Err(io::Error::other(format!("error {code}: {said}")));
            }
        }
        let (began, wanted) = (Instant::now(), before + rights.len());
        while known(&mut stream, principal)? < wanted {
            if began.elapsed() > KNOWN_WITHIN {
                return Err(io::Error::other("the broker does not come to know of them"));
            }
        }
        Ok(())
    }
}

/// The broker opens its listeners one after another: this one may come after the one that it was waited for.
fn connect(port: u16) -> io::Result<TcpStream> {
    let began = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && began.elapsed() < KNOWN_WITHIN => {
                std::thread::sleep(Duration::from_millis(20));
            }
            connected => return connected,
        }
    }
}

/// How many rights of a user the broker knows.
fn known(stream: &mut TcpStream, principal: &str) -> io::Result<usize> {
    // Of any kind, of any name, in any pattern; this user's, from anywhere, for any operation, however given.
    let mut body = vec![1];
    body.extend((-1i16).to_be_bytes());
    body.push(1);
    string(&mut body, principal);
    body.extend((-1i16).to_be_bytes());
    body.extend([1, 1]);
    let answer = ask(stream, 29, &body)?;
    let mut rest = answer.get(4..).unwrap_or_default();
    let code = i16::from_be_bytes(take(&mut rest)?);
    let said = text(&mut rest)?;
    if code != 0 {
        return Err(io::Error::other(format!("error {code}: {said}")));
    }
    let mut count = 0;
    for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
        let _kind: [u8; 1] = take(&mut rest)?;
        text(&mut rest)?;
        let _pattern: [u8; 1] = take(&mut rest)?;
        for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
            text(&mut rest)?;
            text(&mut rest)?;
            let _how: [u8; 2] = take(&mut rest)?;
            count += 1;
        }
    }
    Ok(count)
}

/// One request in version 1, and the body of its answer.
fn ask(stream: &mut TcpStream, api: i16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    request.extend(api.to_be_bytes());
    request.extend(1i16.to_be_bytes());
    request.extend(7i32.to_be_bytes());
    string(&mut request, "tests");
    request.extend_from_slice(body);
    stream.write_all(&(request.len() as i32).to_be_bytes())?;
    stream.write_all(&request)?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut answer = vec![0; i32::from_be_bytes(size).unsigned_abs() as usize];
    stream.read_exact(&mut answer)?;
    // The number of the request.
    Ok(answer.split_off(4.min(answer.len())))
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as i16).to_be_bytes());
    to.extend_from_slice(text.as_bytes());
}

fn take<const N: usize>(from: &mut &[u8]) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A string that may be missing.
fn text(from: &mut &[u8]) -> io::Result<String> {
    let size = usize::try_from(i16::from_be_bytes(take(from)?)).unwrap_or_default();
    let mut bytes = vec![0; size];
    from.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn number(of: &[(&str, i8)], name: &str) -> i8 {
    of.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name} is unknown")).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_as_it_stands_on_its_page() {
        let page = "# Rights\nWords.\n\n| who | what | name | may |\n|---|---|---|---|\n\
                    | ingest | topic | `<prefix>.changes` | Read, Write |\n| it | transactional id | `<prefix>.t.*` | Write |\n\nMore.";
        let read = table(page, "# Rights");
        let names: Vec<_> = read.iter().map(|(who, right)| (who.as_str(), right.operation.as_str())).collect();
        assert_eq!(names, [("ingest", "Read"), ("ingest", "Write"), ("it", "Write")]);
        assert_eq!(read[2].1.with(&[("<prefix>", "shop")]).name, "shop.t.*");
    }
}
