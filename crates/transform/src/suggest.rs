//! The nearest right word for a wrong one.

/// How many single-character edits lie between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut diagonal = i;
        for (slot, to) in row.iter_mut().skip(1).zip(&b) {
            let above = *slot;
            // `left` is the cell just written, `diagonal` the one above it.
            left = (left + 1).min(above + 1).min(diagonal + usize::from(from != *to));
            diagonal = above;
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// `; did you mean "users"?`, or nothing when no word is near.
pub(crate) fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .min()
        .filter(|(edits, candidate)| *edits * 2 <= candidate.chars().count().max(word.chars().count()))
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean \"{candidate}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_edits() {
        for (a, b, edits) in
            [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("users", "user", 1), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        assert_eq!(suggestion("public.user", ["public.users", "public.orders"]), "; did you mean \"public.users\"?");
        assert_eq!(suggestion("zzz", ["public.users"]), "");
    }
}
