//! Good and bad input of every format and packing.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use super::*;

/// Records, malformed lines, and the error that ended it.
type Parsed = (Vec<(String, String, u64)>, Vec<u64>, Option<String>);

fn parse(bytes: &[u8], format: Format) -> Parsed {
    let source = unpack(bytes);
    let records = Records::open(source, Some(format), Some("id")).unwrap();
    let (mut good, mut bad, mut end) = (Vec::new(), Vec::new(), None);
    for record in records {
        match record {
            Ok(r) => good.push((lossy(&r.key), lossy(&r.value), r.line)),
            Err(InputError::Malformed { line, .. }) => bad.push(line),
            Err(error) => end = Some(error.to_string()),
        }
    }
    (good, bad, end)
}

fn unpack(bytes: &[u8]) -> Source {
    let reader = Cursor::new(bytes.to_vec());
    Source::unpack("test".into(), reader, &Position::default()).unwrap()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = liblzma::read::XzEncoder::new(bytes, 1);
    encoder.read_to_end(&mut out).unwrap();
    out
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

const STANZAS: &str = "\
Package: a
Version: 1
Architecture: all
Description: one
 more of it
 .
 end

Package: b
Architecture: amd64
Version: 2:1.0-1
";

#[test]
fn debian_stanzas_have_their_key_and_whole_text() {
    let (good, bad, end) = parse(STANZAS.as_bytes(), Format::Debian);
    assert!(bad.is_empty() && end.is_none());
    assert_eq!(good.len(), 2);
    assert_eq!(good[0].0, "a/all/1");
    assert!(good[0].1.starts_with("Package: a\n") && good[0].1.ends_with(" end\n"));
    assert_eq!((good[1].0.as_str(), good[1].2), ("b/amd64/2:1.0-1", 9));
}

#[test]
fn debian_with_crlf_reads_the_same() {
    let plain = parse(STANZAS.as_bytes(), Format::Debian);
    let crlf = parse(STANZAS.replace('\n', "\r\n").as_bytes(), Format::Debian);
    assert_eq!(plain, crlf);
}

#[test]
fn debian_malformed_stanzas_are_named_and_the_others_are_read() {
    let text = "Package: a\nno colon here\nVersion: 1\n\n\nPackage: b\nVersion: 1\n\n".to_owned();
    let (good, bad, end) = parse((text + STANZAS).as_bytes(), Format::Debian);
    assert_eq!(
        bad,
        [2, 6],
        "the bad line, and the first line of the stanza that lacks a field"
    );
    assert_eq!(good.len(), 2);
    assert!(end.is_none());
}

#[test]
fn debian_that_is_not_utf8_is_kept_byte_for_byte() {
    let text = b"Package: a\nArchitecture: all\nVersion: 1\nMaintainer: J\xf6rg\n";
    let mut records = Records::open(unpack(text), Some(Format::Debian), None).unwrap();
    assert_eq!(records.next().unwrap().unwrap().value, &text[..]);
}

#[test]
fn debian_stanza_past_the_bound_is_malformed_and_skipped() {
    let line = format!("Field: {}\n", "x".repeat(1 << 20));
    let text = format!("Package: huge\n{}\n{STANZAS}", line.repeat(20));
    let (good, bad, _) = parse(text.as_bytes(), Format::Debian);
    assert_eq!((good.len(), bad.len()), (2, 1));
}

#[test]
fn tsv_takes_key_and_value_and_names_bad_lines() {
    let text = b"a\t1\r\n\nb\tx\ty\nno tab\n\tno key\nc\t\nd\t4";
    let (good, bad, _) = parse(text, Format::Tsv);
    let keys: Vec<_> = good
        .iter()
        .map(|g| (g.0.as_str(), g.1.as_str(), g.2))
        .collect();
    assert_eq!(
        keys,
        [("a", "1", 1), ("b", "x\ty", 3), ("c", "", 6), ("d", "4", 7)]
    );
    assert_eq!(bad, [4, 5]);
}

#[test]
fn tsv_huge_line_is_malformed_and_the_next_one_is_read() {
    let mut text = vec![b'x'; RECORD_BYTES_MAX + 10];
    text.extend_from_slice(b"\na\t1\n");
    let (good, bad, _) = parse(&text, Format::Tsv);
    assert_eq!(bad, [1]);
    assert_eq!(good[0].2, 2);
}

#[test]
fn json_lines_take_text_numbers_and_booleans_as_keys() {
    let text = b"{\"id\":\"a\",\"x\":1}\n{\"id\":7}\r\n\n{\"id\":true}\n";
    let (good, bad, _) = parse(text, Format::JsonLines);
    let keys: Vec<_> = good.iter().map(|g| g.0.as_str()).collect();
    assert_eq!(keys, ["a", "7", "true"]);
    assert_eq!(
        good[1].1, "{\"id\":7}",
        "the value is the line without its end"
    );
    assert!(bad.is_empty());
}

#[test]
fn json_lines_malformed_are_named() {
    let text = b"{\"id\":\"a\"}\n{\"id\":\n[1]\n{\"no\":1}\n{\"id\":\"\"}\n{\"id\":[1]}\n{\"id\":\"\xff\"}\n{\"id\":\"b\"}";
    let (good, bad, _) = parse(text, Format::JsonLines);
    assert_eq!(bad, [2, 3, 4, 5, 6, 7]);
    assert_eq!(good.len(), 2);
}

#[test]
fn json_lines_without_key_field_are_refused_at_once() {
    let refused = Records::open(unpack(b"{}"), None, None);
    assert!(refused.err().unwrap().to_string().contains("--key"));
}

#[test]
fn packed_input_reads_like_plain_input() {
    let plain = parse(STANZAS.as_bytes(), Format::Debian);
    for packed in [gzip, xz, lz4] {
        assert_eq!(parse(&packed(STANZAS.as_bytes()), Format::Debian), plain);
        let mut twice = packed(STANZAS.as_bytes());
        twice.extend(packed(b"\n"));
        twice.extend(packed(STANZAS.as_bytes()));
        assert_eq!(
            parse(&twice, Format::Debian).0.len(),
            4,
            "parts one behind the other"
        );
    }
}

#[test]
fn packed_input_that_is_cut_off_ends_with_an_error_after_its_good_part() {
    let text: String = (0..200_000)
        .map(|i| format!("key{i}\t{}\n", i * 7919))
        .collect();
    for packed in [gzip, xz, lz4] {
        let whole = packed(text.as_bytes());
        for cut in [whole.len() / 2, whole.len() - 1, whole.len() - 8, 8] {
            let (good, bad, end) = parse(&whole[..cut], Format::Tsv);
            assert!(end.is_some(), "cut at {cut} of {}", whole.len());
            assert!(good.len() < 200_001 && bad.is_empty());
        }
    }
}

#[test]
fn packed_input_that_is_damaged_ends_with_an_error() {
    let text: String = (0..20_000)
        .map(|i| format!("key{i}\t{}\n", i * 7919))
        .collect();
    for packed in [gzip, xz] {
        let mut damaged = packed(text.as_bytes());
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        assert!(parse(&damaged, Format::Tsv).2.is_some());
    }
}

#[test]
fn empty_input_has_no_records() {
    for format in [Format::Debian, Format::JsonLines, Format::Tsv] {
        assert_eq!(parse(b"", format), (vec![], vec![], None));
        assert_eq!(parse(b"\n\n", format), (vec![], vec![], None));
        assert_eq!(parse(&gzip(b""), format), (vec![], vec![], None));
    }
    assert_eq!(Records::open(unpack(b""), None, None).unwrap().count(), 0);
}

#[test]
fn repeated_keys_are_all_given_in_order() {
    let (good, _, _) = parse(b"a\t1\nb\t2\na\t3\n", Format::Tsv);
    let values: Vec<_> = good.iter().map(|g| g.1.as_str()).collect();
    assert_eq!(values, ["1", "2", "3"]);
}

#[test]
fn format_is_told_by_name_then_by_content() {
    let named = |name| Format::of_name(Path::new(name));
    assert_eq!(
        named("/x/deb_main_binary-amd64_Packages.lz4"),
        Some(Format::Debian)
    );
    assert_eq!(named("Packages"), Some(Format::Debian));
    assert_eq!(named("x.jsonl.gz"), Some(Format::JsonLines));
    assert_eq!(named("x.TSV.xz"), Some(Format::Tsv));
    assert_eq!(named("status"), None);
    assert_eq!(Format::of_content(STANZAS.as_bytes()), Some(Format::Debian));
    assert_eq!(
        Format::of_content(b"\n {\"a\": \"b\tc\"}"),
        Some(Format::JsonLines)
    );
    assert_eq!(Format::of_content(b"a b: c\td"), Some(Format::Tsv));
    assert_eq!(Format::of_content(b"what is this"), None);
    let unclear = Records::open(unpack(b"what is this"), None, None);
    assert!(unclear.err().unwrap().to_string().contains("--format"));
}

#[test]
fn installed_package_list_of_this_machine_is_read() {
    // Every Debian machine has it; elsewhere there is nothing to read.
    let path = Path::new("/var/lib/dpkg/status");
    if !path.exists() {
        return;
    }
    let (source, position) = Source::open(path).unwrap();
    let records: Vec<_> = Records::open(source, None, None).unwrap().collect();
    assert!(!records.is_empty() && records.iter().all(|r| r.is_ok()));
    assert_eq!(Some(position.read()), position.total);
}

#[test]
fn source_that_is_missing_or_a_folder_is_named() {
    let error = Source::open(Path::new("/no/such/file")).err().unwrap();
    assert!(error.to_string().contains("/no/such/file"));
    let folder = tempfile::tempdir().unwrap();
    assert!(Source::open(folder.path()).is_err());
}
