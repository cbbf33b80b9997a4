//! Part files, right and wrong in every way, each wrong one with its place.

use super::*;

fn problems(text: &str) -> Vec<Problem> {
    PartFile::parse(text).expect_err("it is wrong")
}

/// (line, column, part of what is wrong, part of what to do)
fn only(text: &str) -> (usize, usize, String, String) {
    let mut all = problems(text);
    assert_eq!(all.len(), 1, "{text}: {all:?}");
    let Problem {
        line,
        column,
        what,
        fix,
    } = all.remove(0);
    (line, column, what, fix)
}

#[test]
fn every_key_is_taken_over() {
    let file = PartFile::parse(
        r#"
        name = "sim"
        cores = "3-3"
        max-cores = 4
        mem = "1G"
        node = 1
        export = ["/data", "/s=/out:rw"]
        ring = "3"
        without = ["smap", "pcid"]
        backing = "huge"
        prefault = false
        share-cores = true
        kernel = "/k"
    "#,
    );
    let file = file.expect("it is right");
    let without: u64 = ["smap", "pcid"]
        .iter()
        .map(|name| enclave_vmm::features::parse_without(name).expect("known").0)
        .sum();
    assert_eq!(file.without, Features(without));
    let exports: Vec<(&str, bool)> = file
        .exports
        .iter()
        .map(|export| (export.guest.as_str(), export.writable))
        .collect();
    assert_eq!(exports, [("/data", false), ("/out", true)]);
    let wanted = PartFile {
        name: Some("sim".to_owned()),
        cores: Some(CoreRequest::List(vec![3])),
        max_cores: Some(4),
        mem_bytes: Some(1 << 30),
        node: Some(1),
        exports: file.exports.clone(),
        ring: Some(Ring::Ring3),
        without: file.without,
        backing: Some(Backing::Huge2m),
        prefault: Some(false),
        share_cores: Some(true),
        isolation: None,
        kernel: Some("/k".into()),
    };
    assert_eq!(file, wanted);
    assert_eq!(PartFile::parse(""), Ok(PartFile::default()));
}

#[test]
fn an_unknown_key_is_told_with_its_place_and_what_was_meant() {
    let (line, column, what, fix) = only("# ä\n  coers = 1\n");
    assert_eq!((line, column), (2, 3));
    assert_eq!(what, "there is no key \"coers\"");
    assert_eq!(fix, "write cores");
    let (line, column, what, _) = only("[cpu]\ncores = 1\n");
    assert_eq!((line, column), (1, 2), "{what}");
}

#[test]
fn wrong_units_and_numbers_without_any_are_refused() {
    for text in [
        "mem = 512",
        "mem = \"512MB\"",
        "mem = \"512 M\"",
        "mem = \"0.5G\"",
        "mem = 0.5",
        "mem = \"-1M\"",
        "mem = true",
        "mem = [\"512M\"]",
    ] {
        let (line, column, what, fix) = only(text);
        assert_eq!((line, column), (1, 7), "{text}");
        assert!(
            !what.is_empty() && fix.contains("\"512M\""),
            "{text}: {what}; {fix}"
        );
    }
}

#[test]
fn absurd_numbers_are_refused() {
    for text in [
        "mem = \"1M\"",
        "mem = \"33M\"",
        "mem = \"9999999T\"",
        "mem = \"99999999999999999999T\"",
        "cores = 0",
        "cores = -1",
        "cores = 99999999999999999999",
        "cores = 0xffffffff",
        "cores = 1.0",
        "cores = []",
        "cores = [-1]",
        "cores = [4096]",
        "cores = [\"1\"]",
        "cores = \"5-2\"",
        "node = -1",
        "node = 1024",
        "node = \"0\"",
        "name = \"../x\"",
        "name = 7",
        "ring = 3",
        "ring = \"1\"",
        "backing = \"2M\"",
        "prefault = \"no\"",
        "share-cores = 1",
        "max-cores = 0",
        "max-cores = 33",
        "max-cores = \"2\"",
        "kernel = \"relative\"",
        "export = \"/data\"",
        "without = \"smap\"",
        "name = 1979-05-27",
    ] {
        let (line, column, what, fix) = only(text);
        assert_eq!(
            (line, column),
            (1, text.find('=').expect("=") + 3),
            "{text}"
        );
        assert!(!what.is_empty() && !fix.is_empty(), "{text}: {what}; {fix}");
    }
}

#[test]
fn an_item_of_a_list_is_told_by_its_own_place() {
    for (text, place) in [
        ("export = [\"/data\",\n  \"data\"]", (2, 3)),
        ("export = [\"/data\", \"/s=/data\"]", (1, 20)),
        ("export = [\"/data\", 7]", (1, 20)),
        ("without = [\"smap\", \"colour\"]", (1, 20)),
    ] {
        let (line, column, what, _) = only(text);
        assert_eq!((line, column), place, "{text}: {what}");
    }
    let many: Vec<String> = (0..65).map(|n| format!("\"/d{n}\"")).collect();
    let (_, _, what, _) = only(&format!("export = [{}]", many.join(",")));
    assert!(what.contains("65 exports"), "{what}");
}

#[test]
fn all_problems_are_told_in_order() {
    let text = "name = \"\"\ncoers = 1\nmem = 1\n\nnode = 0\nring = 7\n";
    let lines: Vec<usize> = problems(text).iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [1, 2, 3, 6]);
    let many = (0..1000).map(|n| format!("k{n} = 1\n")).collect::<String>();
    assert_eq!(problems(&many).len(), MAX_PROBLEMS);
}

#[test]
fn what_is_no_toml_is_told_where_it_ends_to_be_it() {
    for (text, line) in [
        ("mem = 512M\n", 1),
        ("name = sim\n", 1),
        ("cores = 1\ncores = 2\n", 2),
        ("export = [\n\"/data\"\n", 2),
        ("\n\n= 1\n", 3),
        ("name = \"a\nb\"\n", 1),
    ] {
        let all = problems(text);
        let first = all.first().expect("a problem");
        assert!(first.line.abs_diff(line) <= 1, "{text}: {all:?}");
        assert!(!first.what.is_empty() && !first.fix.is_empty());
    }
}

#[test]
fn nothing_that_a_file_holds_reaches_the_terminal_raw() {
    let (_, _, what, fix) = only("\"\\u001b[31m\" = 1");
    assert!(!what.contains('\x1b') && !fix.contains('\x1b'), "{what}");
    let (_, _, what, _) = only("name = \"\\u001b[31m\"");
    assert!(!what.contains('\x1b'), "{what}");
}

#[test]
fn deep_and_long_nonsense_is_refused() {
    let deep = format!("cores = {}1{}", "[".repeat(50_000), "]".repeat(50_000));
    assert!(PartFile::parse(&deep).is_err());
    let long = format!("name = \"{}\"", "a".repeat(1 << 20));
    assert!(PartFile::parse(&long).is_err());
}
