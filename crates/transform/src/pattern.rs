//! Patterns of table names: `public.*`, `shop.order_?`, `!public.settings`. Later patterns win.

use crossfade_event::TableName;

/// Whether the list of patterns takes the table.
pub(crate) fn takes(patterns: &[String], table: &TableName) -> bool {
    let name = table.to_string();
    patterns.iter().fold(false, |taken, pattern| match pattern.strip_prefix('!') {
        Some(excluded) => taken && !matches(excluded, &name),
        None => taken || matches(pattern, &name),
    })
}

/// `*` stands for any text, `?` for one character.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // reachable[i]: the pattern so far matches the first i characters.
    let mut reachable = vec![false; name.len() + 1];
    if let Some(first) = reachable.first_mut() {
        *first = true;
    }
    for wanted in pattern {
        let mut next = vec![false; name.len() + 1];
        if wanted == '*' {
            let mut any = false;
            for (now, then) in reachable.iter().zip(&mut next) {
                any |= *now;
                *then = any;
            }
        } else {
            for ((now, have), then) in reachable.iter().zip(&name).zip(next.iter_mut().skip(1)) {
                *then = *now && (wanted == '?' || wanted == *have);
            }
        }
        reachable = next;
    }
    reachable.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_patterns_win() {
        let patterns = ["public.*".to_owned(), "!public.log_*".to_owned(), "public.log_kept".to_owned()];
        let taken = |name: &str| takes(&patterns, &TableName::new("public", name));
        assert!(taken("users") && taken("log_kept"));
        assert!(!taken("log_old"));
        assert!(!takes(&patterns, &TableName::new("other", "users")));
    }

    #[test]
    fn stars_and_question_marks_match() {
        for (pattern, name, expected) in
            [("a*c", "abbc", true), ("a*c", "abb", false), ("a?c", "abc", true), ("a?c", "ac", false), ("*", "", true)]
        {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
