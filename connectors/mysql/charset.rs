//! Turns text in any character set of the servers into UTF-8. Pure. Values come in the character
//! set of their column, from the log as from SQL (`SET character_set_results = NULL`), so both
//! ways pass through here and cannot differ.
//!
//! Surprises: the servers' latin1 is Windows-1252 with its five holes filled. And a few characters
//! of the East Asian sets are other ones than in every browser; see `exceptions.rs`.

mod exceptions;
mod tables;

use encoding_rs::{BIG5, EUC_JP, EUC_KR, Encoding, GB18030, GBK, SHIFT_JIS};

use super::bytes::{Decoded, Malformed};

/// A character set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    /// utf8mb3 or utf8mb4: how many bytes a character may have.
    Utf8(u8),
    /// ascii.
    Ascii,
    /// Swedish ASCII, in which brackets are letters.
    Swe7,
    /// ASCII, and this for bytes from 0x80.
    Single(&'static [u16; 128]),
    /// Big-endian units of two bytes, without surrogates.
    Ucs2,
    /// Big-endian units of two bytes.
    Utf16,
    /// Little-endian units of two bytes.
    Utf16Le,
    /// Big-endian units of four bytes.
    Utf32,
    /// East Asian.
    Multi(&'static Multi),
}

/// A character set whose characters differ in length.
#[derive(Debug, PartialEq, Eq)]
pub struct Multi {
    encoding: &'static Encoding,
    scheme: Scheme,
    /// Codes that the servers read differently than `encoding`, sorted.
    exceptions: &'static [(u32, u16)],
}

/// How long a character is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// One or two bytes.
    Two,
    /// As `Two`; some bytes from 0x80 stand alone.
    ShiftJis,
    /// One or two, or three after 0x8F.
    EucJp,
    /// One, two or four.
    Gb18030,
}

const fn multi(
    encoding: &'static Encoding,
    scheme: Scheme,
    exceptions: &'static [(u32, u16)],
) -> Multi {
    Multi { encoding, scheme, exceptions }
}

static BIG5_SET: Multi = multi(BIG5, Scheme::Two, &exceptions::BIG5);
static CP932_SET: Multi = multi(SHIFT_JIS, Scheme::ShiftJis, &[]);
static EUCJPMS_SET: Multi = multi(EUC_JP, Scheme::EucJp, &exceptions::EUCJPMS);
static EUCKR_SET: Multi = multi(EUC_KR, Scheme::Two, &[]);
static GB18030_SET: Multi = multi(GB18030, Scheme::Gb18030, &exceptions::GB18030);
static GB2312_SET: Multi = multi(GBK, Scheme::Two, &exceptions::GB2312);
static GBK_SET: Multi = multi(GBK, Scheme::Two, &[]);
static SJIS_SET: Multi = multi(SHIFT_JIS, Scheme::ShiftJis, &exceptions::SJIS);
static UJIS_SET: Multi = multi(EUC_JP, Scheme::EucJp, &exceptions::UJIS);

impl Charset {
    /// The character set of this name; `None` if it is unknown.
    #[must_use]
    pub fn named(name: &str) -> Option<Charset> {
        use Charset::{Multi, Single};
        Some(match name {
            "utf8" | "utf8mb3" => Charset::Utf8(3),
            "utf8mb4" => Charset::Utf8(4),
            "ascii" => Charset::Ascii,
            "swe7" => Charset::Swe7,
            "ucs2" => Charset::Ucs2,
            "utf16" => Charset::Utf16,
            "utf16le" => Charset::Utf16Le,
            "utf32" => Charset::Utf32,
            "armscii8" => Single(&tables::ARMSCII8),
            "cp1250" => Single(&tables::CP1250),
            "cp1251" => Single(&tables::CP1251),
            "cp1256" => Single(&tables::CP1256),
            "cp1257" => Single(&tables::CP1257),
            "cp850" => Single(&tables::CP850),
            "cp852" => Single(&tables::CP852),
            "cp866" => Single(&tables::CP866),
            "dec8" => Single(&tables::DEC8),
            "geostd8" => Single(&tables::GEOSTD8),
            "greek" => Single(&tables::GREEK),
            "hebrew" => Single(&tables::HEBREW),
            "hp8" => Single(&tables::HP8),
            "keybcs2" => Single(&tables::KEYBCS2),
            "koi8r" => Single(&tables::KOI8R),
            "koi8u" => Single(&tables::KOI8U),
            "latin1" => Single(&tables::LATIN1),
            "latin2" => Single(&tables::LATIN2),
            "latin5" => Single(&tables::LATIN5),
            "latin7" => Single(&tables::LATIN7),
            "macce" => Single(&tables::MACCE),
            "macroman" => Single(&tables::MACROMAN),
            "tis620" => Single(&tables::TIS620),
            "big5" => Multi(&BIG5_SET),
            "cp932" => Multi(&CP932_SET),
            "eucjpms" => Multi(&EUCJPMS_SET),
            "euckr" => Multi(&EUCKR_SET),
            "gb18030" => Multi(&GB18030_SET),
            "gb2312" => Multi(&GB2312_SET),
            "gbk" => Multi(&GBK_SET),
            "sjis" => Multi(&SJIS_SET),
            "ujis" => Multi(&UJIS_SET),
            _ => return None,
        })
    }

    /// The character set of a collation, by the number that both servers give it. Those of Unicode
    /// have many numbers, and are all UTF-8 where a client may use them.
    #[must_use]
    pub fn of_collation(number: u16) -> Option<Charset> {
        Charset::named(match number {
            1 | 84 => "big5",
            2 | 9 | 21 | 27 | 77 => "latin2",
            3 | 69 => "dec8",
            4 | 80 => "cp850",
            5 | 8 | 15 | 31 | 47 | 48 | 49 | 94 => "latin1",
            6 | 72 => "hp8",
            7 | 74 => "koi8r",
            10 | 82 => "swe7",
            11 | 65 => "ascii",
            12 | 91 => "ujis",
            13 | 88 => "sjis",
            14 | 23 | 50..=52 => "cp1251",
            16 | 71 => "hebrew",
            18 | 89 => "tis620",
            19 | 85 => "euckr",
            20 | 41 | 42 | 79 => "latin7",
            22 | 75 => "koi8u",
            24 | 86 => "gb2312",
            25 | 70 => "greek",
            26 | 34 | 44 | 66 | 99 => "cp1250",
            28 | 87 => "gbk",
            29 | 58 | 59 => "cp1257",
            30 | 78 => "latin5",
            32 | 64 => "armscii8",
            35 | 90 | 128..=151 | 159 | 640..=642 => "ucs2",
            36 | 68 => "cp866",
            37 | 73 => "keybcs2",
            38 | 43 => "macce",
            39 | 53 => "macroman",
            40 | 81 => "cp852",
            54 | 55 | 101..=124 | 672..=674 => "utf16",
            56 | 62 => "utf16le",
            57 | 67 => "cp1256",
            60 | 61 | 160..=183 | 736..=738 => "utf32",
            92 | 93 => "geostd8",
            95 | 96 => "cp932",
            97 | 98 => "eucjpms",
            248..=250 => "gb18030",
            33 | 76 | 83 | 192..=223 => "utf8mb3",
            45 | 46 | 224..=247 | 255..=323 => "utf8mb4",
            _ => return None,
        })
    }

    /// How many bytes a character has at most; the server counts columns in them.
    #[must_use]
    pub fn char_bytes(&self) -> u32 {
        match self {
            Charset::Utf8(bytes) => u32::from(*bytes),
            Charset::Ascii | Charset::Swe7 | Charset::Single(_) => 1,
            Charset::Ucs2 => 2,
            Charset::Utf16 | Charset::Utf16Le | Charset::Utf32 => 4,
            Charset::Multi(multi) => match multi.scheme {
                Scheme::Two | Scheme::ShiftJis => 2,
                Scheme::EucJp => 3,
                Scheme::Gb18030 => 4,
            },
        }
    }

    /// Appends the text as UTF-8.
    ///
    /// # Errors
    /// If the bytes are no text in this character set. What was appended means nothing then.
    #[inline]
    pub fn push_utf8(&self, bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
        // ASCII is asked for first, because most texts are, and it is cheaper to know.
        let is_utf8 = || bytes.is_ascii() || std::str::from_utf8(bytes).is_ok();
        match self {
            Charset::Utf8(_) if is_utf8() => {
                out.extend_from_slice(bytes);
                Ok(())
            }
            other => other.push_transcoded(bytes, out),
        }
    }

    fn push_transcoded(&self, bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
        match self {
            Charset::Utf8(_) => Err(malformed()),
            Charset::Ascii if bytes.is_ascii() => {
                out.extend_from_slice(bytes);
                Ok(())
            }
            Charset::Ascii => Err(malformed()),
            Charset::Swe7 => push_units(bytes.iter().map(|&byte| swe7(byte)), out),
            Charset::Single(table) => push_single(table, bytes, out),
            Charset::Ucs2 => push_units(units(bytes, u16::from_be_bytes)?.map(from_unit), out),
            Charset::Utf16 => push_utf16(units(bytes, u16::from_be_bytes)?, out),
            Charset::Utf16Le => push_utf16(units(bytes, u16::from_le_bytes)?, out),
            Charset::Utf32 => {
                let (units, []) = bytes.as_chunks::<4>() else { return Err(malformed()) };
                let read = |unit: &[u8; 4]| char::from_u32(u32::from_be_bytes(*unit));
                push_units(units.iter().map(read), out)
            }
            Charset::Multi(multi) => multi.push_utf8(bytes, out),
        }
    }

    /// The text as UTF-8.
    ///
    /// # Errors
    /// As `push_utf8`.
    pub fn utf8(&self, bytes: &[u8]) -> Decoded<String> {
        let mut out = Vec::with_capacity(bytes.len());
        self.push_utf8(bytes, &mut out)?;
        String::from_utf8(out).map_err(|_| malformed())
    }
}

fn malformed() -> Malformed {
    Malformed::new("a text is not valid in its character set")
}

fn push_char(character: char, out: &mut Vec<u8>) {
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

fn push_units(
    mut characters: impl Iterator<Item = Option<char>>,
    out: &mut Vec<u8>,
) -> Decoded<()> {
    characters.try_for_each(|character| {
        push_char(character.ok_or_else(malformed)?, out);
        Ok(())
    })
}

fn push_single(table: &[u16; 128], bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    if bytes.is_ascii() {
        out.extend_from_slice(bytes);
        return Ok(());
    }
    let read = |&byte: &u8| match byte {
        0..=0x7f => Some(char::from(byte)),
        _ => match table[usize::from(byte & 0x7f)] {
            tables::UNDEFINED => None,
            unit => from_unit(unit),
        },
    };
    push_units(bytes.iter().map(read), out)
}

fn swe7(byte: u8) -> Option<char> {
    Some(match byte {
        b'@' => 'É',
        b'[' => 'Ä',
        b'\\' => 'Ö',
        b']' => 'Å',
        b'^' => 'Ü',
        b'`' => 'é',
        b'{' => 'ä',
        b'|' => 'ö',
        b'}' => 'å',
        b'~' => 'ü',
        0x7f.. => return None,
        _ => char::from(byte),
    })
}

/// A unit that is a whole character.
fn from_unit(unit: u16) -> Option<char> {
    char::from_u32(u32::from(unit))
}

fn units(bytes: &[u8], read: fn([u8; 2]) -> u16) -> Decoded<impl Iterator<Item = u16>> {
    match bytes.as_chunks::<2>() {
        (units, []) => Ok(units.iter().map(move |&unit| read(unit))),
        _ => Err(malformed()),
    }
}

fn push_utf16(units: impl Iterator<Item = u16>, out: &mut Vec<u8>) -> Decoded<()> {
    push_units(char::decode_utf16(units).map(Result::ok), out)
}

impl Multi {
    fn push_utf8(&self, bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
        if bytes.is_ascii() {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        let mut rest = bytes;
        while let Some(&lead) = rest.first() {
            let length = self.length(lead, rest.get(1).copied());
            let (character, tail) = rest.split_at_checked(length).ok_or_else(malformed)?;
            rest = tail;
            self.push_character(character, out)?;
        }
        Ok(())
    }

    fn length(&self, lead: u8, second: Option<u8>) -> usize {
        match (self.scheme, lead) {
            (_, 0..=0x7f) | (Scheme::ShiftJis, 0xa1..=0xdf) => 1,
            (Scheme::EucJp, 0x8f) => 3,
            (Scheme::Gb18030, _) if second.is_some_and(|second| second.is_ascii_digit()) => 4,
            _ => 2,
        }
    }

    fn push_character(&self, character: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
        if let &[byte] = character
            && byte.is_ascii()
        {
            out.push(byte);
            return Ok(());
        }
        let code = character.iter().fold(0, |code, &byte| code << 8 | u32::from(byte));
        if let Some(other) = self.exception(code) {
            push_char(other, out);
            return Ok(());
        }
        let mut utf8 = [0; 8];
        let mut decoder = self.encoding.new_decoder_without_bom_handling();
        let (result, read, written) =
            decoder.decode_to_utf8_without_replacement(character, &mut utf8, true);
        match result {
            encoding_rs::DecoderResult::InputEmpty if read == character.len() => {
                out.extend_from_slice(&utf8[..written]);
                Ok(())
            }
            _ => Err(malformed()),
        }
    }

    /// What the servers make of a code that others read differently.
    fn exception(&self, code: u32) -> Option<char> {
        if self.scheme == Scheme::EucJp
            && let Some(private) = private_use_of_eucjp(code)
        {
            return Some(private);
        }
        let at = self.exceptions.binary_search_by_key(&code, |&(code, _)| code).ok()?;
        from_unit(self.exceptions[at].1)
    }
}

/// The rows of the two Japanese sets that are left to users.
fn private_use_of_eucjp(code: u32) -> Option<char> {
    let (row, cell) = (code >> 8 & 0xff, code & 0xff);
    if !(0xf5..=0xfe).contains(&row) || !(0xa1..=0xfe).contains(&cell) {
        return None;
    }
    let first = match code >> 16 {
        0 => 0xe000,
        0x8f => 0xe3ac,
        _ => return None,
    };
    char::from_u32(first + (row - 0xf5) * 94 + (cell - 0xa1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 40] = [
        "armscii8", "ascii", "big5", "cp1250", "cp1251", "cp1256", "cp1257", "cp850", "cp852",
        "cp866", "cp932", "dec8", "eucjpms", "euckr", "gb18030", "gb2312", "gbk", "geostd8",
        "greek", "hebrew", "hp8", "keybcs2", "koi8r", "koi8u", "latin1", "latin2", "latin5",
        "latin7", "macce", "macroman", "sjis", "swe7", "tis620", "ucs2", "ujis", "utf16",
        "utf16le", "utf32", "utf8mb3", "utf8mb4",
    ];

    fn check(name: &str, bytes: &[u8], expected: &str) {
        assert_eq!(Charset::named(name).unwrap().utf8(bytes).unwrap(), expected, "{name}");
    }

    #[test]
    fn texts_of_every_kind_are_read() {
        check("latin1", &[0x80, 0x81, 0xe9], "€\u{81}é");
        check("swe7", b"[a", "Äa");
        check("ucs2", &[0x65, 0xe5], "日");
        check("utf16", &[0xd8, 0x3d, 0xde, 0x00], "😀");
        check("utf16le", &[0x3d, 0xd8, 0x00, 0xde], "😀");
        check("utf32", &[0, 1, 0xf6, 0], "😀");
        check("gbk", &[0xd6, 0xd0, b'a'], "中a");
        check("koi8r", &[0xf0], "П");
    }

    #[test]
    fn east_asian_sets_are_read_as_the_servers_do() {
        // The same bytes mean other characters in the sets of Windows.
        check("sjis", &[0x81, 0x60, 0x5c], "〜\\");
        check("cp932", &[0x81, 0x60, 0x5c], "～\\");
        check("ujis", &[0xa1, 0xc1, 0x8f, 0xa2, 0xb7], "〜~");
        check("eucjpms", &[0xa1, 0xc1, 0x8f, 0xf3, 0xf3], "～ⅰ");
        check("ujis", &[0xf5, 0xa1, 0x8f, 0xfe, 0xfe], "\u{e000}\u{e757}");
        check("gb2312", &[0xa1, 0xa4], "・");
        check("gb18030", &[0xa3, 0xa0, 0x81, 0x30, 0x81, 0x30], "\u{e5e5}\u{80}");
        check("big5", &[0xa1, 0x45], "•");
        check("euckr", &[0xc7, 0xd1], "한");
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for (name, bytes) in [
            ("utf8mb4", &[0xff][..]),
            ("ascii", &[0x80]),
            ("ucs2", &[1]),
            ("ucs2", &[0xd8, 0]),
            ("utf16", &[0xd8, 0]),
            ("utf32", &[0, 0, 1]),
            ("gbk", &[0xd6]),
            ("hebrew", &[0xff]),
            ("swe7", &[0x80]),
            ("sjis", &[0x81, 0x20]),
        ] {
            assert!(Charset::named(name).unwrap().utf8(bytes).is_err(), "{name}");
        }
        assert_eq!(Charset::named("klingon"), None);
    }

    /// For each set a checksum of what both servers make of each byte, and of each pair of bytes
    /// of which the first is not ASCII; what they do not understand counts as nothing.
    #[test]
    fn all_characters_are_those_of_the_servers() {
        for line in include_str!("testdata/charsets.txt").lines() {
            let (name, expected) = line.split_once(' ').unwrap();
            let charset = Charset::named(name).unwrap();
            let mut all = Vec::new();
            let singles = (0..=255u8).map(|byte| vec![byte]);
            let pairs = (0x80..=255u8).flat_map(|a| (0x30..=255u8).map(move |b| vec![a, b]));
            let pairs = pairs.filter(|_| charset.char_bytes() > 1);
            for bytes in singles.chain(pairs) {
                let text = charset.utf8(&bytes).unwrap_or_default();
                if text.chars().count() == 1 {
                    all.extend_from_slice(&bytes);
                    all.extend_from_slice(text.as_bytes());
                }
            }
            assert_eq!(format!("{:08x}", crc32fast::hash(&all)), expected, "{name}");
        }
    }

    #[test]
    fn collations_have_the_character_sets_that_are_known() {
        let known: Vec<Charset> = (0..1024).filter_map(Charset::of_collation).collect();
        for name in NAMES {
            assert!(known.contains(&Charset::named(name).unwrap()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_text_or_an_error(
            which in 0..NAMES.len(), bytes in proptest::collection::vec(any::<u8>(), 0..40)
        ) {
            let _ = Charset::named(NAMES[which]).unwrap().utf8(&bytes);
        }
    }
}
