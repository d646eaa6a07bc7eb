//! Roots, trees and temporary directories for the tests beside this.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A file's text or a link's target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    File(String),
    Link(PathBuf),
}

/// Everything below a directory, by relative path.
pub(crate) type Tree = BTreeMap<String, Node>;

/// `tests/roots`.
pub(crate) fn roots() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/roots")
}

/// An empty directory of this test's own below cargo's directory for such things.
pub(crate) fn fresh_directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path).unwrap();
    }
    fs::create_dir_all(&path).unwrap();
    path
}

/// Whether the expected files are to be rewritten instead of compared.
pub(crate) fn update() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// Reads a tree; a directory that is not there is empty, as git keeps it.
pub(crate) fn read_tree(top: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut ahead = if top.exists() { vec![top.to_owned()] } else { Vec::new() };
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                ahead.push(path);
                continue;
            }
            let node = if kind.is_symlink() {
                Node::Link(fs::read_link(&path).unwrap())
            } else {
                Node::File(fs::read_to_string(&path).unwrap())
            };
            tree.insert(path.strip_prefix(top).unwrap().to_str().unwrap().to_owned(), node);
        }
    }
    tree
}

/// Writes a tree in place of what is at `top`.
pub(crate) fn write_tree(top: &Path, tree: &Tree) {
    if top.exists() {
        fs::remove_dir_all(top).unwrap();
    }
    fs::create_dir_all(top).unwrap();
    for (path, node) in tree {
        let path = top.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match node {
            Node::File(text) => fs::write(path, text).unwrap(),
            Node::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
        }
    }
}

/// What differs, as `- expected` and `+ written`; empty if nothing does.
pub(crate) fn diff(expected: &Tree, written: &Tree) -> String {
    let mut text = String::new();
    let paths: std::collections::BTreeSet<&String> = expected.keys().chain(written.keys()).collect();
    for path in paths {
        let (old, new) = (expected.get(path), written.get(path));
        if old != new {
            let _ = writeln!(text, "{path}:\n{}", diff_lines(&lines(old), &lines(new)));
        }
    }
    text
}

fn lines(node: Option<&Node>) -> Vec<String> {
    match node {
        None => vec!["(absent)".to_owned()],
        Some(Node::Link(target)) => vec![format!("(link to {})", target.display())],
        Some(Node::File(text)) => text.split('\n').map(str::to_owned).collect(),
    }
}

/// The lines between the common beginning and the common end, which is enough for files as short as ours.
fn diff_lines(old: &[String], new: &[String]) -> String {
    let begin = old.iter().zip(new).take_while(|(one, other)| one == other).count();
    let (old, new) = (&old[begin..], &new[begin..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
    let mut text = format!("  (from line {})\n", begin + 1);
    for line in &old[..old.len() - end] {
        let _ = writeln!(text, "- {line}");
    }
    for line in &new[..new.len() - end] {
        let _ = writeln!(text, "+ {line}");
    }
    text
}
