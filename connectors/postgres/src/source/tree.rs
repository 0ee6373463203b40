//! Partition trees that are captured by their root (`publish_via_partition_root`).
//!
//! The server then sends every row under the root's name, whichever leaf it lies in, and says nothing of what happens
//! to the tree: a leaf that is attached brings its rows without an event, one that is detached or dropped takes them
//! along, and a leaf that is truncated by itself is empty without a word. So the tree is looked at again and again, and
//! compared with what it was when the root was last copied: who is in it, by which entry of the catalog (a leaf that
//! left and came back has a new one), and in which file its rows lie (a truncate makes a new one).
//!
//! What it was is kept in a file, with the number of the backfill that copied the root: changes while nobody looks are
//! found afterwards, and a file that says more than the log is not believed.

use super::notes;
use crate::{
    Patterns,
    client::{ServerError, failure},
};
use crossfade_connector::Failure;
use crossfade_event::TableName;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tokio_postgres::{Client, SimpleQueryMessage};

/// One relation of a tree, the root left out.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) oid: u32,
    pub(crate) name: TableName,
    kind: String,
    persistence: String,
    print: String,
    /// It has no page: nothing was ever in it since it has this file. Of a leaf, only [`find_empty`] says so.
    empty: bool,
    /// Its old rows are sent as the root's are.
    identity_agrees: bool,
}

/// How long a look waits for a leaf that somebody has locked (`VACUUM FULL`, a `TRUNCATE` that has not ended): the
/// stream stands still that long.
const LOCK_WAIT: &str = "200ms";
/// SQLSTATE: a lock was not to be had in time.
const LOCKED: &str = "55P03";

/// Takes no lock on any of them, unlike `pg_partition_tree` and `pg_relation_size`. A member that is being detached
/// (from version 14 on there is a column that says so) has left.
const MEMBERS: &str = "\
WITH RECURSIVE tree (relid) AS (
  SELECT h.inhrelid FROM pg_catalog.pg_inherits h
  WHERE h.inhparent = $1 AND pg_catalog.to_jsonb(h) ->> 'inhdetachpending' IS DISTINCT FROM 'true'
  UNION SELECT h.inhrelid FROM pg_catalog.pg_inherits h JOIN tree ON h.inhparent = tree.relid
  WHERE pg_catalog.to_jsonb(h) ->> 'inhdetachpending' IS DISTINCT FROM 'true')
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
  pg_catalog.concat_ws(' ', i.inhparent, i.xmin, pg_catalog.pg_relation_filenode(c.oid)),
  c.relkind = 'p',
  CASE WHEN c.relkind = 'p' OR k.own IS NULL THEN true
    WHEN c.relreplident = 'f' THEN k.root IS NOT NULL ELSE k.own = k.root END
FROM tree t
JOIN pg_catalog.pg_class c ON c.oid = t.relid
JOIN pg_catalog.pg_class r ON r.oid = $1
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid
CROSS JOIN LATERAL (SELECT
  CASE c.relreplident WHEN 'f' THEN '{}'::text[] ELSE (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attname)
    FROM pg_catalog.pg_index x JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (x.indkey::int2[])
    WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate
      AND (CASE c.relreplident WHEN 'i' THEN x.indisreplident WHEN 'd' THEN x.indisprimary ELSE false END)) END AS own,
  COALESCE((SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attname)
    FROM pg_catalog.pg_index x JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum = ANY (x.indkey::int2[])
    WHERE x.indrelid = r.oid AND x.indisvalid AND x.indimmediate
      AND (CASE r.relreplident WHEN 'i' THEN x.indisreplident WHEN 'n' THEN false ELSE x.indisprimary END)),
    CASE r.relreplident WHEN 'f' THEN '{}'::text[] END) AS root) k
WHERE c.oid <> $1 ORDER BY c.oid";

/// Everything that stands under a root.
pub(crate) async fn members(client: &Client, root: u32) -> Result<Vec<Member>, Failure> {
    let rows = client.query(MEMBERS, &[&root]).await.map_err(|error| failure("looking at a partition tree", error))?;
    Ok(rows
        .into_iter()
        .map(|row| Member {
            oid: row.get(0),
            name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            kind: row.get(3),
            persistence: row.get(4),
            print: row.get(5),
            empty: row.get(6),
            identity_agrees: row.get(7),
        })
        .collect())
}

/// Asks which of the leaves named by oid have no page. False where one of them is locked, so that nobody can say.
pub(super) async fn find_empty(client: &Client, members: &mut [Member], leaves: &[u32]) -> Result<bool, Failure> {
    if leaves.is_empty() {
        return Ok(true);
    }
    let list: Vec<String> = leaves.iter().map(ToString::to_string).collect();
    // Both statements are one transaction, for they are sent as one.
    let sql = format!(
        "SET LOCAL lock_timeout = '{LOCK_WAIT}'; SELECT m.oid FROM pg_catalog.unnest('{{{}}}'::oid[]) m (oid) \
         WHERE COALESCE(pg_catalog.pg_relation_size(m.oid), 0) = 0",
        list.join(",")
    );
    let answer = match client.simple_query(&sql).await {
        Ok(answer) => answer,
        Err(error) if ServerError::of(&error).is_some_and(|error| error.code == LOCKED) => return Ok(false),
        Err(error) => return Err(failure("looking at a partition's size", error)),
    };
    for message in answer {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let oid = row.get(0).and_then(|oid| oid.parse::<u32>().ok());
        members.iter_mut().filter(|member| Some(member.oid) == oid).for_each(|member| member.empty = true);
    }
    Ok(true)
}

/// Why a tree cannot be captured by its root, and the remedy.
pub(crate) fn obstacle(root: &TableName, members: &[Member], patterns: &Patterns) -> Option<(String, String)> {
    members.iter().find_map(|member| {
        let name = &member.name;
        let (what, remedy) = if member.kind == "f" {
            ("is a foreign table: its rows live in another server", format!("Detach {name}"))
        } else if member.persistence == "u" {
            ("is unlogged: its changes are not in the WAL", format!("ALTER TABLE {name} SET LOGGED"))
        } else if patterns.verdict(name) == Some(false) {
            (
                "is excluded in the spec, and a tree that is captured by its root has all of its rows",
                "Take the pattern out, or set partitions = \"leaf\"".to_owned(),
            )
        } else if !member.identity_agrees {
            (
                "has another replica identity than the root, so that its old rows would be misread",
                format!("ALTER TABLE {name} REPLICA IDENTITY as {root} has it"),
            )
        } else {
            return None;
        };
        Some((format!("its partition {name} {what}"), remedy))
    })
}

/// The same, as a refusal.
pub(super) fn check(root: &TableName, members: &[Member], patterns: &Patterns) -> Result<(), Failure> {
    match obstacle(root, members, patterns) {
        None => Ok(()),
        Some((problem, remedy)) => Err(Failure::refused(format!("capturing {root} by its root"), problem, remedy)),
    }
}

/// How a tree was: its members' prints, by oid.
type Prints = BTreeMap<u32, String>;

fn prints(members: &[Member]) -> Prints {
    members.iter().map(|member| (member.oid, member.print.clone())).collect()
}

/// What a look at a tree says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// As it was.
    Same,
    /// Only empty leaves have come: whatever gets into them is in the stream.
    Grown,
    /// Rows came or went without an event.
    Changed(String),
}

/// What is known of every tree.
#[derive(Debug)]
pub(super) struct Trees {
    file: PathBuf,
    /// By the root's oid: the backfill that copied it last, and how it was then.
    known: BTreeMap<u32, (u32, Prints)>,
}

impl Trees {
    /// Reads the file. What it says of backfills that the log does not know is taken out, of the file as well: the log
    /// will give their numbers to others.
    pub(super) async fn read(folder: &Path, generation: u32) -> Result<Self, Failure> {
        let file = folder.join("trees");
        let text = tokio::fs::read_to_string(&file).await.unwrap_or_default();
        let mut known = parse(&text).unwrap_or_default();
        let before = known.len();
        known.retain(|_, (copied, _)| *copied <= generation);
        let trees = Self { file, known };
        if trees.known.len() < before {
            trees.write().await?;
        }
        Ok(trees)
    }

    /// How a tree is now is how it is copied: noted before the backfill begins, for its chunks see at least this.
    pub(super) async fn copied(&mut self, root: u32, members: &[Member], generation: u32) -> Result<(), Failure> {
        self.known.insert(root, (generation, prints(members)));
        self.write().await
    }

    /// Empty leaves that have come belong to it from now on.
    pub(super) async fn grown(&mut self, root: u32, members: &[Member]) -> Result<(), Failure> {
        if let Some((_, known)) = self.known.get_mut(&root) {
            *known = prints(members);
        }
        self.write().await
    }

    /// Whether a leaf was there when its tree was last looked at.
    pub(super) fn has(&self, root: u32, leaf: u32) -> bool {
        self.known.get(&root).is_some_and(|(_, known)| known.contains_key(&leaf))
    }

    /// The leaves of a known tree that were not there then: whether they are empty matters.
    pub(super) fn strangers(&self, root: u32, members: &[Member]) -> Vec<u32> {
        let Some((_, known)) = self.known.get(&root) else { return Vec::new() };
        let is_strange = |member: &&Member| !member.empty && !known.contains_key(&member.oid);
        members.iter().filter(is_strange).map(|member| member.oid).collect()
    }

    pub(super) fn look(&self, root: u32, members: &[Member]) -> Seen {
        let Some((_, known)) = self.known.get(&root) else {
            return Seen::Changed("how its partitions were when it was copied is not known any more".to_owned());
        };
        let mut seen = Seen::Same;
        for member in members {
            match known.get(&member.oid) {
                Some(print) if *print == member.print => {}
                Some(_) => {
                    return Seen::Changed(format!(
                        "its partition {} was truncated or rewritten, or left and came back",
                        member.name
                    ));
                }
                None if member.empty => seen = Seen::Grown,
                None => return Seen::Changed(format!("its partition {} was attached with rows", member.name)),
            }
        }
        match known.keys().find(|oid| !members.iter().any(|member| member.oid == **oid)) {
            Some(_) => Seen::Changed("a partition was detached or dropped".to_owned()),
            None => seen,
        }
    }

    /// One that is lost has a root copied once more.
    async fn write(&self) -> Result<(), Failure> {
        let mut text = String::new();
        for (root, (generation, known)) in &self.known {
            text.push_str(&format!("root {root} {generation}\n"));
            known.iter().for_each(|(oid, print)| text.push_str(&format!("{oid} {print}\n")));
        }
        text.push_str("end\n");
        notes::write(&self.file, &text).await
    }
}

fn parse(text: &str) -> Option<BTreeMap<u32, (u32, Prints)>> {
    let mut known: BTreeMap<u32, (u32, Prints)> = BTreeMap::new();
    let mut root = None;
    for line in text.strip_suffix("end\n")?.lines() {
        let (first, rest) = line.split_once(' ')?;
        if first == "root" {
            let (oid, generation) = rest.split_once(' ')?;
            let oid: u32 = oid.parse().ok()?;
            known.insert(oid, (generation.parse().ok()?, Prints::new()));
            root = Some(oid);
        } else {
            known.get_mut(&root?)?.1.insert(first.parse().ok()?, rest.to_owned());
        }
    }
    Some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(oid: u32, print: &str, empty: bool) -> Member {
        Member {
            oid,
            name: TableName::new("app", format!("p{oid}")),
            kind: "r".into(),
            persistence: "p".into(),
            print: print.into(),
            empty,
            identity_agrees: true,
        }
    }

    #[tokio::test]
    async fn only_empty_leaves_may_come_without_a_new_copy() {
        let folder = tempfile::tempdir().unwrap();
        let mut trees = Trees::read(folder.path(), 0).await.unwrap();
        let leaves = [member(1, "9 700 5001", false), member(2, "9 700 5002", true)];
        assert!(matches!(trees.look(9, &leaves), Seen::Changed(_)), "nothing is known yet");
        trees.copied(9, &leaves, 1).await.unwrap();
        for (now, same) in [
            (vec![leaves[0].clone(), leaves[1].clone()], Some(Seen::Same)),
            (vec![leaves[0].clone(), leaves[1].clone(), member(3, "9 800 5003", true)], Some(Seen::Grown)),
            (vec![leaves[0].clone(), leaves[1].clone(), member(3, "9 800 5003", false)], None),
            (vec![leaves[0].clone()], None),
            (vec![leaves[0].clone(), member(2, "9 801 5002", true)], None),
            (vec![leaves[0].clone(), member(2, "9 700 5009", true)], None),
        ] {
            let seen = trees.look(9, &now);
            match same {
                Some(wanted) => assert_eq!(seen, wanted, "{now:?}"),
                None => assert!(matches!(seen, Seen::Changed(_)), "{now:?}"),
            }
        }
        // A restart knows as much; a log that lacks the backfill does not believe it.
        assert_eq!(Trees::read(folder.path(), 1).await.unwrap().look(9, &leaves), Seen::Same);
        assert!(matches!(Trees::read(folder.path(), 0).await.unwrap().look(9, &leaves), Seen::Changed(_)));
        // The log gives the number to another backfill, and nobody has copied the tree: the file must not say so again.
        assert!(matches!(Trees::read(folder.path(), 1).await.unwrap().look(9, &leaves), Seen::Changed(_)));
        tokio::fs::write(folder.path().join("trees"), "root 9 1\n1 9 700 5001\n").await.unwrap();
        let cut_off = Trees::read(folder.path(), 1).await.unwrap();
        assert!(matches!(cut_off.look(9, &leaves), Seen::Changed(_)), "cut off");
        assert_eq!(trees.strangers(9, &[member(1, "x", false), member(4, "y", false), member(5, "z", true)]), [4]);
    }
}
