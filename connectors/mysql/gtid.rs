//! Global transaction identifiers: which transactions have been read, in each server's own form.
//! Pure. `bookmark.rs` keeps them, `subscribe.rs` and `stream.rs` compare and send them.
//!
//! Surprise: MariaDB's position is the last transaction of each domain and the order of its
//! numbers matters; MySQL's is a set, which may have holes, and has no order at all.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::bytes::{Decoded, Malformed};

/// One transaction of MariaDB: `0-1-100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MariadbGtid {
    /// The replication domain.
    pub domain: u32,
    /// The server that first wrote it.
    pub server: u32,
    /// Its number in the domain.
    pub sequence: u64,
}

impl fmt::Display for MariadbGtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

impl FromStr for MariadbGtid {
    type Err = Malformed;

    fn from_str(text: &str) -> Decoded<MariadbGtid> {
        let wrong = || Malformed(format!("{text:?} is no GTID of MariaDB"));
        let mut parts = text.split('-');
        let mut next = || parts.next().and_then(number).ok_or_else(wrong);
        let (domain, server, sequence) = (next()?, next()?, next()?);
        let small = |number: u64| u32::try_from(number).map_err(|_| wrong());
        match parts.next() {
            None => Ok(MariadbGtid { domain: small(domain)?, server: small(server)?, sequence }),
            Some(_) => Err(wrong()),
        }
    }
}

/// The last transaction of each domain: `0-1-100,1-2-5`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MariadbPosition {
    last: BTreeMap<u32, MariadbGtid>,
}

impl MariadbPosition {
    /// Moves the transaction's domain to it.
    pub fn add(&mut self, gtid: MariadbGtid) {
        self.last.insert(gtid.domain, gtid);
    }

    /// The last transactions, by domain.
    pub fn iter(&self) -> impl Iterator<Item = &MariadbGtid> {
        self.last.values()
    }

    /// Whether no domain has a transaction.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// Whether this position has passed all that `other` has.
    #[must_use]
    pub fn contains(&self, other: &MariadbPosition) -> bool {
        self.missing(other).is_empty()
    }

    /// The transactions of `other` that this position has not reached.
    #[must_use]
    pub fn missing(&self, other: &MariadbPosition) -> MariadbPosition {
        let beyond = |theirs: &&MariadbGtid| {
            self.last.get(&theirs.domain).is_none_or(|ours| ours.sequence < theirs.sequence)
        };
        MariadbPosition {
            last: other.iter().filter(beyond).map(|gtid| (gtid.domain, *gtid)).collect(),
        }
    }
}

impl fmt::Display for MariadbPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, self.last.values())
    }
}

impl FromStr for MariadbPosition {
    type Err = Malformed;

    fn from_str(text: &str) -> Decoded<MariadbPosition> {
        let mut position = MariadbPosition::default();
        for gtid in list(text) {
            position.add(gtid.parse()?);
        }
        Ok(position)
    }
}

/// Who numbers transactions of MySQL: a server, and since 8.3 perhaps a tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid {
    /// The server's UUID.
    pub bytes: [u8; 16],
    /// The tag; empty when there is none.
    pub tag: String,
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.bytes.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        match self.tag.is_empty() {
            true => Ok(()),
            false => write!(f, ":{}", self.tag),
        }
    }
}

/// A set of MySQL's transactions: `uuid:1-5:7,uuid:tag:1-3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MysqlSet {
    /// For each numberer its intervals, first and last number included; sorted, with gaps between.
    intervals: BTreeMap<Uuid, Vec<(u64, u64)>>,
}

impl MysqlSet {
    /// Puts one transaction in.
    pub fn add(&mut self, uuid: &Uuid, number: u64) {
        // The usual case needs no new key and no search: the next number.
        if let Some(intervals) = self.intervals.get_mut(uuid)
            && let Some(last) = intervals.last_mut()
            && last.1.checked_add(1) == Some(number)
        {
            last.1 = number;
            return;
        }
        self.add_interval(uuid.clone(), number, number);
    }

    fn add_interval(&mut self, uuid: Uuid, first: u64, last: u64) {
        let intervals = self.intervals.entry(uuid).or_default();
        let (mut first, mut last) = (first, last);
        let apart = |&(start, end): &(u64, u64)| {
            end.saturating_add(1) < first || last.saturating_add(1) < start
        };
        let (mut kept, touching): (Vec<_>, Vec<_>) = intervals.iter().copied().partition(apart);
        for (start, end) in touching {
            (first, last) = (first.min(start), last.max(end));
        }
        let at = kept.partition_point(|&(start, _)| start < first);
        kept.insert(at, (first, last));
        *intervals = kept;
    }

    /// Whether no transaction is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// Who numbers, and the numbers: first and last, both included.
    pub fn iter(&self) -> impl Iterator<Item = (&Uuid, &[(u64, u64)])> {
        self.intervals.iter().map(|(uuid, intervals)| (uuid, intervals.as_slice()))
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub fn contains(&self, other: &MysqlSet) -> bool {
        self.missing(other).is_empty()
    }

    /// The transactions of `other` that are not in this set.
    #[must_use]
    pub fn missing(&self, other: &MysqlSet) -> MysqlSet {
        let mut missing = MysqlSet::default();
        for (uuid, theirs) in &other.intervals {
            let ours = self.intervals.get(uuid).map_or(&[][..], Vec::as_slice);
            let left: Vec<_> = theirs.iter().flat_map(|&one| without(one, ours)).collect();
            if !left.is_empty() {
                missing.intervals.insert(uuid.clone(), left);
            }
        }
        missing
    }
}

/// What is left of an interval without others, which are sorted.
fn without((first, last): (u64, u64), others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    let mut from = first;
    for &(start, end) in others.iter().filter(|&&(start, end)| end >= first && start <= last) {
        if start > from {
            left.push((from, start - 1));
        }
        if end >= last {
            return left;
        }
        from = end + 1;
    }
    left.push((from, last));
    left
}

impl fmt::Display for MysqlSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, self.intervals.iter().map(|(uuid, intervals)| Member { uuid, intervals }))
    }
}

struct Member<'a> {
    uuid: &'a Uuid,
    intervals: &'a [(u64, u64)],
}

impl fmt::Display for Member<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.uuid)?;
        for &(first, last) in self.intervals {
            match first == last {
                true => write!(f, ":{first}")?,
                false => write!(f, ":{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for MysqlSet {
    type Err = Malformed;

    /// Reads what the server prints: line breaks, and several tags behind one UUID.
    fn from_str(text: &str) -> Decoded<MysqlSet> {
        let wrong = || Malformed(format!("{text:?} is no set of GTIDs of MySQL"));
        let mut set = MysqlSet::default();
        for member in list(text) {
            let mut parts = member.split(':').map(str::trim);
            let bytes = parts.next().and_then(uuid_bytes).ok_or_else(wrong)?;
            let (mut uuid, mut numbers) = (Uuid { bytes, tag: String::new() }, 0);
            for part in parts {
                if part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                    uuid.tag = tag(part).ok_or_else(wrong)?;
                    continue;
                }
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let (first, last) =
                    (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
                if first == 0 || last < first {
                    return Err(wrong());
                }
                set.add_interval(uuid.clone(), first, last);
                numbers += 1;
            }
            if numbers == 0 {
                return Err(wrong());
            }
        }
        Ok(set)
    }
}

fn tag(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (text.len() <= 32 && text.chars().all(plain)).then(|| text.to_ascii_lowercase())
}

/// The bytes of a UUID, with or without hyphens.
#[must_use]
pub fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'-').collect();
    let hyphens = text.len() - digits.len();
    if digits.len() != 32 || !(hyphens == 0 || hyphens == 4) {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

/// The members of a list with commas; an empty text has none.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|member| !member.is_empty())
}

fn write_list<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    members: impl Iterator<Item = T>,
) -> fmt::Result {
    for (index, member) in members.enumerate() {
        match index {
            0 => write!(f, "{member}")?,
            _ => write!(f, ",{member}")?,
        }
    }
    Ok(())
}

/// A number in plain digits.
fn number(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn check_set(text: &str, printed: &str) {
        let set: MysqlSet = text.parse().unwrap();
        assert_eq!(set.to_string(), printed);
        assert_eq!(printed.parse::<MysqlSet>().unwrap(), set);
    }

    #[test]
    fn sets_are_read_as_the_server_prints_them() {
        check_set("", "");
        check_set(&format!("{UUID}:1-5:7"), &format!("{UUID}:1-5:7"));
        check_set(&format!(" {UUID}:7:1-5:6\n"), &format!("{UUID}:1-7"));
        check_set(&format!("{UUID}:1-2:Blue:3,\n{UUID}:4"), &format!("{UUID}:1-2:4,{UUID}:blue:3"));
        check_set(&UUID.to_uppercase().replace('-', "").add(":1"), &format!("{UUID}:1"));
    }

    trait Add {
        fn add(self, tail: &str) -> String;
    }

    impl Add for String {
        fn add(self, tail: &str) -> String {
            self + tail
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for text in ["x", UUID, "3e11:1", &format!("{UUID}:0"), &format!("{UUID}:5-1")] {
            assert!(text.parse::<MysqlSet>().is_err(), "{text}");
        }
        for text in ["0-1", "0-1-2-3", "a-1-2", "0-1-", "4294967296-1-1"] {
            assert!(text.parse::<MariadbPosition>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_position_of_mariadb_is_the_last_of_each_domain() {
        let mut position: MariadbPosition = "1-2-5,0-1-100".parse().unwrap();
        position.add("0-7-101".parse().unwrap());
        assert_eq!(position.to_string(), "0-7-101,1-2-5");
        let other: MariadbPosition = "0-1-99,2-1-1".parse().unwrap();
        assert_eq!(position.missing(&other).to_string(), "2-1-1");
        assert!(position.contains(&"0-1-101".parse().unwrap()));
    }

    fn set_of(numbers: &BTreeSet<u64>) -> MysqlSet {
        let uuid = Uuid { bytes: uuid_bytes(UUID).unwrap(), tag: String::new() };
        let mut set = MysqlSet::default();
        for &number in numbers {
            set.add(&uuid, number);
        }
        set
    }

    fn any_numbers() -> impl Strategy<Value = BTreeSet<u64>> {
        proptest::collection::btree_set(1..40u64, 0..30)
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(ours in any_numbers(), theirs in any_numbers(), order: u64) {
            let (a, b) = (set_of(&ours), set_of(&theirs));
            let left: BTreeSet<u64> = theirs.difference(&ours).copied().collect();
            prop_assert_eq!(a.missing(&b), set_of(&left));
            prop_assert_eq!(a.contains(&b), theirs.is_subset(&ours));
            prop_assert_eq!(a.to_string().parse::<MysqlSet>().unwrap(), a.clone());
            // The order of adding means nothing.
            let mut shuffled: Vec<u64> = ours.iter().copied().collect();
            shuffled.sort_by_key(|number| number.wrapping_mul(order | 1));
            let uuid = Uuid { bytes: uuid_bytes(UUID).unwrap(), tag: String::new() };
            let mut again = MysqlSet::default();
            shuffled.iter().for_each(|&number| again.add(&uuid, number));
            prop_assert_eq!(again, a);
        }

        #[test]
        fn any_text_is_a_position_or_an_error(text in ".{0,60}") {
            let _ = text.parse::<MysqlSet>();
            let _ = text.parse::<MariadbPosition>();
        }
    }
}
