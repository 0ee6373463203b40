//! The two spellings of a connection string, as libpq documents them, without the keys that we do not honour: an
//! option that would be ignored is refused by name.

use super::{Config, Host, SslMode, TlsOptions, refuse};
use crossfade_connector::Failure;
use secrecy::SecretString;
use std::{path::PathBuf, time::Duration};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PORT: u16 = 5432;

pub(super) fn parse(text: &str) -> Result<Config, Failure> {
    let pairs = match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
        Some(rest) => url_pairs(rest)?,
        None => key_value_pairs(text)?,
    };
    build(pairs)
}

/// `user:password@host:port,host:port/database?key=value&…`, each part percent-decoded, as libpq's keys and values.
fn url_pairs(rest: &str) -> Result<Vec<(String, String)>, Failure> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let mut pairs = Vec::new();
    for (key, value) in [("user", user), ("password", password), ("dbname", database)] {
        if !value.is_empty() {
            pairs.push((key.to_owned(), decode(value)?));
        }
    }
    if !hosts.is_empty() {
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',') {
            let (name, port) = match host.rsplit_once(':') {
                Some((name, port)) if !port.ends_with(']') => (name, port),
                _ => (host, ""),
            };
            names.push(decode(name.trim_start_matches('[').trim_end_matches(']'))?);
            ports.push(port.to_owned());
        }
        pairs.push(("host".to_owned(), names.join(",")));
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| refuse("a part after `?` has no `=`".to_owned(), "Write key=value pairs joined by `&`"))?;
        pairs.push((decode(key)?, decode(value)?));
    }
    Ok(pairs)
}

fn decode(text: &str) -> Result<String, Failure> {
    let wrong =
        || refuse("a `%` in the URL is not followed by two hex digits of UTF-8".to_owned(), "Write a literal % as %25");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(wrong()),
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// `key = value key='quoted \' value'`.
fn key_value_pairs(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(refuse(
                "it is neither a postgres:// URL nor key=value pairs".to_owned(),
                "Write postgres://user@host:5432/database",
            ));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        let quoted = chars.next_if_eq(&'\'').is_some();
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\'') if quoted => break,
                None if quoted => {
                    return Err(refuse(format!("the value of {key} has no closing quote"), "Add the closing quote"));
                }
                None => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
            }
        }
        pairs.push((key, value));
    }
}

fn build(pairs: Vec<(String, String)>) -> Result<Config, Failure> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    let (mut user, mut password, mut dbname, mut options) = (None, None, None, None);
    let mut tls = TlsOptions::default();
    let mut connect_timeout = CONNECT_TIMEOUT;
    for (key, value) in pairs {
        match key.as_str() {
            "host" => hosts = value,
            "port" => ports = value,
            "user" => user = Some(value),
            "password" => password = Some(SecretString::from(value)),
            "dbname" => dbname = Some(value),
            "options" => options = Some(value),
            "sslmode" => tls.sslmode = Some(SslMode::parse(&value)?),
            "sslrootcert" if value == "system" => tls.sslrootcert = None,
            "sslrootcert" => tls.sslrootcert = Some(PathBuf::from(value)),
            "sslcert" => tls.sslcert = Some(PathBuf::from(value)),
            "sslkey" => tls.sslkey = Some(PathBuf::from(value)),
            "connect_timeout" => {
                let seconds = value.parse().map_err(|_| {
                    refuse(format!("connect_timeout={value} is not a number"), "Give whole seconds, 10 for example")
                })?;
                connect_timeout = Duration::from_secs(seconds);
            }
            other => {
                return Err(refuse(
                    format!("the key `{other}` is not known here"),
                    "Known are host, port, user, password, dbname, options, connect_timeout, sslmode, sslrootcert, \
                     sslcert and sslkey",
                ));
            }
        }
    }
    let user = user.ok_or_else(|| refuse("it names no user".to_owned(), "Write postgres://USER@host:5432/database"))?;
    let dbname = dbname.unwrap_or_else(|| user.clone());
    for (what, text) in [("user", &user), ("database", &dbname)] {
        if text.contains('\0') {
            return Err(refuse(format!("the {what} holds a NUL"), "Remove it"));
        }
    }
    Ok(Config {
        hosts: addresses(&hosts, &ports)?,
        user,
        password,
        dbname,
        options,
        tls,
        connect_timeout,
        lock_timeout: Duration::ZERO,
        statement_timeout: Duration::ZERO,
    })
}

/// Pairs hosts and ports as libpq does: one port for all, or one for each.
fn addresses(hosts: &str, ports: &str) -> Result<Vec<(Host, u16)>, Failure> {
    let ports = ports
        .split(',')
        .map(|port| match port.trim() {
            "" => Ok(PORT),
            port => port.parse::<u16>().map_err(|_| {
                refuse(format!("port `{port}` is not a number up to 65535"), "PostgreSQL's usual port is 5432")
            }),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let hosts: Vec<&str> = hosts.split(',').map(str::trim).collect();
    if hosts.iter().any(|host| host.is_empty()) {
        return Err(refuse("it names no host".to_owned(), "Write postgres://user@HOST:5432/database"));
    }
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(refuse(
            format!("{} hosts but {} ports", hosts.len(), ports.len()),
            "Give one port for all hosts, or one for each",
        ));
    }
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(PORT);
    Ok(hosts
        .into_iter()
        .enumerate()
        .map(|(index, host)| {
            let host = if host.starts_with('/') { Host::Unix(PathBuf::from(host)) } else { Host::Tcp(host.to_owned()) };
            (host, port(index))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_url_and_its_key_value_form_say_the_same() {
        let url =
            Config::parse("postgres://me:s%40cret@db.example:5433/shop?sslmode=require&options=-c%20a%3Db").unwrap();
        let pairs = Config::parse(
            r"host=db.example port=5433 user=me password='s@cret' dbname=shop sslmode=require options='-c a=b'",
        )
        .unwrap();
        for config in [url, pairs] {
            assert_eq!(config.to_string(), "me@db.example:5433/shop");
            assert_eq!(config.password().unwrap().expose_secret(), "s@cret");
            assert_eq!(config.options(), Some("-c a=b"));
            assert_eq!(config.ssl_mode(), SslMode::Require);
        }
    }

    #[test]
    fn full_verification_is_the_default_and_silent_fallback_is_refused() {
        assert_eq!(Config::parse("postgres://me@localhost/db").unwrap().ssl_mode(), SslMode::VerifyFull);
        assert!(
            Config::parse("postgres://me@localhost/db?sslmode=prefer").unwrap_err().to_string().contains("silently")
        );
        assert!(Config::parse("host=/run/postgresql user=me").is_err());
        assert!(Config::parse("host=/run/postgresql user=me sslmode=disable").is_ok());
    }

    #[test]
    fn what_would_be_ignored_is_refused_by_name_and_the_password_is_never_shown() {
        let error = Config::parse("postgres://me:hunter2@h/db?target_session_attrs=any").unwrap_err();
        assert!(error.to_string().contains("target_session_attrs"));
        let config = Config::parse("postgres://me:hunter2@h/db").unwrap();
        assert!(!format!("{config:?} {config} {error:?}").contains("hunter2"));
    }

    #[test]
    fn several_hosts_share_a_port_or_have_their_own() {
        let config = Config::parse("postgres://me@a:1,[::1]:2/db").unwrap();
        assert_eq!(config.hosts(), [(Host::Tcp("a".into()), 1), (Host::Tcp("::1".into()), 2)]);
        assert!(Config::parse("host=a,b,c port=1,2 user=me").is_err());
    }
}
