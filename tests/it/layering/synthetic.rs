//! The checks on small synthetic crates: every way to use a file is found, and nothing else.

use super::graph::{Files, Graph, Tests};
use super::uses_upwards;

/// A crate with these files.
fn graph_with(files: &[(&str, &str)], tests: Tests) -> Graph {
    let files: Files =
        files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    Graph::read(&files, tests)
}

fn graph(files: &[(&str, &str)]) -> Graph {
    graph_with(files, Tests::Excluded)
}

/// The uses in a crate, as pairs.
fn uses(files: &[(&str, &str)]) -> Vec<(String, String)> {
    graph(files).edges.into_keys().collect()
}

/// Whether the file `a.rs` with this text uses `b.rs`, which defines `b` and `B`.
#[track_caller]
fn assert_uses_b(text: &str) {
    let b = "pub fn b() {} pub struct B; pub enum E { V } macro_rules! m { () => {} } pub(crate) use m;";
    let uses = uses(&[("lib.rs", "mod a; mod b;"), ("a.rs", text), ("b.rs", b)]);
    assert_eq!(uses, [("a.rs".to_owned(), "b.rs".to_owned())], "{text}");
}

#[test]
fn every_form_of_use_is_seen() {
    for text in [
        "use crate::b::B;",
        "use super::b::B;",
        "use crate::{b::{B as Other, b}, a};",
        "use crate::b; fn f() { b::b() }",
        "use crate::b as other; fn f() -> other::B { todo!() }",
        "use crate::b::{self}; fn f() { b::b() }",
        "use crate::b::*; fn f(_: B) {}",
        "use crate::b::E::V;",
        "use crate::b::m;",
        "fn f(_: crate::b::B) {}",
        "fn f(_: Vec<crate::b::B>) {}",
        "fn f() { super::b::b() }",
        "fn f() { use crate::b::b; b() }",
        "fn f() { crate::b::m!() }",
        "fn f() { assert!(1 == { crate::b::b(); 1 }, \"\") }",
        "macro_rules! f { () => { $crate::b::b() } }",
        "impl From<crate::b::B> for u8 { fn from(_: crate::b::B) -> u8 { 1 } }",
        "#[derive(Debug)] struct S { #[serde(with = \"crate::b::b\")] s: u8 }",
        "#[arg(value_parser = crate::b::b)] struct S;",
        "mod inline { use super::super::b::B; }",
        "mod inline { fn f() { crate::b::b() } }",
    ] {
        assert_uses_b(text);
    }
}

#[test]
fn other_crates_comments_and_strings_are_no_use() {
    let a = "
        //! [`crate::b::B`]
        use b::B as NotOurs;
        pub(in crate::b) struct S;
        fn f() { let b = \"crate::b::b()\"; ::b::b(); self::g(b.b) }
        fn g(_: u8) {}
    ";
    let lib = "mod a; mod c { pub mod b; }";
    assert_eq!(uses(&[("lib.rs", lib), ("a.rs", a), ("c/b.rs", "pub struct B;")]), []);
}

#[test]
fn a_use_through_re_exports_is_one_of_the_file_that_defines_the_item() {
    let files = [
        ("lib.rs", "mod a; pub mod c; pub use c::D;"),
        ("a.rs", "use crate::c::D; fn f() -> crate::c::Other { crate::D }"),
        ("c/mod.rs", "mod d; pub use d::D; pub(crate) use d::*;"),
        ("c/d.rs", "pub struct D; pub struct Other;"),
    ];
    assert_eq!(uses(&files), [("a.rs".to_owned(), "c/d.rs".to_owned())]);
}

#[test]
fn declarations_and_re_exports_are_no_use() {
    let files = [
        ("lib.rs", "pub mod c; pub use c::D;"),
        ("c/mod.rs", "mod d; mod e; pub use d::D; pub use e::E; pub struct C;"),
        ("c/d.rs", "use super::C; pub struct D(C);"),
        ("c/e.rs", "use super::D; pub struct E(D);"),
    ];
    assert_eq!(graph(&files).cycles(), [[""; 0]; 0]);
}

#[test]
fn a_parent_that_uses_a_child_that_uses_its_parent_is_a_cycle() {
    for parent in [
        "mod d; pub struct C(d::D);",
        "mod d; use d::D; pub struct C(D);",
        "mod d; pub use d::D; pub struct C(D);",
        "mod d; pub struct C; impl C { fn f() { println!(\"{:?}\", d::D) } }",
    ] {
        let files = [
            ("lib.rs", "mod c;"),
            ("c/mod.rs", parent),
            ("c/d.rs", "use super::C; pub struct D(Option<Box<C>>);"),
        ];
        let graph = graph(&files);
        assert_eq!(graph.cycles(), [["c/d.rs", "c/mod.rs"]], "{parent}");
        assert_eq!(graph.uses_within(&["c/d.rs", "c/mod.rs"]).lines().count(), 2);
    }
}

#[test]
fn cycles_of_several_files_are_found_and_kept_apart() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d; mod e; mod f;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::c::C; pub struct B;"),
        ("c.rs", "use crate::a::A; pub struct C;"),
        ("d.rs", "use crate::a::A; pub struct D;"),
        ("e.rs", "use crate::f::F; use crate::d::D; pub struct E;"),
        ("f.rs", "use crate::e::E; pub struct F;"),
    ];
    let graph = graph(&files);
    assert_eq!(graph.cycles(), [&["a.rs", "b.rs", "c.rs"][..], &["e.rs", "f.rs"]]);
}

#[test]
fn test_modules_count_only_when_they_are_included() {
    let files = [
        ("lib.rs", "mod a; mod b; #[cfg(test)] mod tests;"),
        ("a.rs", "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }"),
        (
            "b.rs",
            "use crate::a::A; pub struct B; #[cfg(all(test, unix))] fn f(_: crate::tests::T) {}",
        ),
        ("tests.rs", "pub struct T(crate::a::A);"),
    ];
    assert_eq!(graph(&files).cycles(), [[""; 0]; 0]);
    let with_tests = graph_with(&files, Tests::Included);
    assert_eq!(with_tests.cycles(), [["a.rs", "b.rs", "tests.rs"]]);
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "pub struct A; #[cfg(not(test))] mod real { use crate::b::B; }"),
        ("b.rs", "use crate::a::A; pub struct B;"),
    ];
    assert_eq!(graph(&files).cycles(), [["a.rs", "b.rs"]]);
}

#[test]
fn globs_that_lead_in_a_circle_end() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "pub use crate::b::*; fn f() { nowhere() }"),
        ("b.rs", "pub use crate::a::*; fn g() { f() }"),
    ];
    assert_eq!(uses(&files), [("b.rs".to_owned(), "a.rs".to_owned())]);
}

#[test]
fn a_module_and_a_function_may_have_the_same_name() {
    let files = [
        ("lib.rs", "mod a; mod c;"),
        ("a.rs", "use crate::c::health; fn f() { health() }"),
        ("c/mod.rs", "mod health; pub use health::health;"),
        ("c/health.rs", "pub fn health() {}"),
    ];
    assert_eq!(uses(&files), [("a.rs".to_owned(), "c/health.rs".to_owned())]);
}

#[test]
fn a_use_of_a_module_above_is_found() {
    let files = [
        ("lib.rs", "pub mod top; pub mod below;"),
        ("top.rs", "use crate::below::b; pub fn t() { b() }"),
        ("below.rs", "pub fn b() {} pub fn c() { crate::top::t() }"),
    ];
    let found = uses_upwards(&graph(&files), &["top", "below"]);
    assert_eq!(found, ["below.rs uses top.rs: `crate::top::t`"]);
}
