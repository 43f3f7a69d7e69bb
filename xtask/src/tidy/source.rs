//! The source tree: every text file of the checkout, Rust files parsed once.
//!
//! Walks the directory itself instead of asking git, so that it works in an unpacked archive. What a
//! build leaves behind (`target`) and hidden directories other than `.ci` and `.cargo` are skipped.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};

/// Directories that hold no sources.
const SKIPPED_DIRECTORIES: &[&str] = &["target", "corpus", "artifacts"];

/// Hidden directories that do hold sources.
const HIDDEN_DIRECTORIES: &[&str] = &[".ci", ".cargo"];

/// Larger files are data, not text that the rules have an opinion on.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// One text file.
pub(crate) struct Source {
    /// Its text.
    pub(crate) text: String,
    /// Its syntax, for a `.rs` file that parses. rustc complains about the others.
    pub(crate) syntax: Option<syn::File>,
}

/// All text files by path relative to the root, with `/`.
pub(crate) struct Tree {
    files: BTreeMap<String, Source>,
}

impl Tree {
    /// Reads the checkout at `root`.
    ///
    /// # Errors
    /// If a directory or file cannot be read. Files that are not UTF-8 are passed over.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut pending = vec![root.to_path_buf()];
        while let Some(directory) = pending.pop() {
            let context = || format!("cannot read {}", directory.display());
            for entry in std::fs::read_dir(&directory).with_context(context)? {
                let entry = entry.with_context(context)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let kind = entry.file_type().with_context(context)?;
                if kind.is_dir() {
                    if keep_directory(&name) {
                        pending.push(entry.path());
                    }
                } else if kind.is_file()
                    && name != ".git"
                    && entry.metadata()?.len() <= TEXT_BYTES_MAX
                {
                    let bytes = std::fs::read(entry.path())
                        .with_context(|| format!("cannot read {}", entry.path().display()))?;
                    let path = entry.path();
                    let relative = path
                        .strip_prefix(root)
                        .unwrap_or(&path)
                        .to_string_lossy()
                        .into_owned();
                    if let Ok(text) = String::from_utf8(bytes) {
                        let source = Source::new(&relative, text);
                        files.insert(relative, source);
                    }
                }
            }
        }
        Ok(Self { files })
    }

    /// A tree of invented files, for the rules' own tests.
    #[cfg(test)]
    pub(crate) fn from_files(files: &[(&str, &str)]) -> Self {
        let files = files
            .iter()
            .map(|&(path, text)| (path.to_owned(), Source::new(path, text.to_owned())));
        Self {
            files: files.collect(),
        }
    }

    /// One file.
    pub(crate) fn get(&self, path: &str) -> Option<&Source> {
        self.files.get(path)
    }

    /// All files in path order.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.files
            .iter()
            .map(|(path, source)| (path.as_str(), source))
    }

    /// The Rust files that parse, in path order.
    pub(crate) fn rust(&self) -> impl Iterator<Item = (&str, &Source, &syn::File)> {
        self.files()
            .filter_map(|(path, source)| Some((path, source, source.syntax.as_ref()?)))
    }
}

impl Source {
    fn new(path: &str, text: String) -> Self {
        let syntax = path
            .ends_with(".rs")
            .then(|| syn::parse_file(&text).ok())
            .flatten();
        Self { text, syntax }
    }

    /// Every token of the file, groups flattened, comments gone, doc comments kept as attributes.
    pub(crate) fn tokens(&self) -> Vec<TokenTree> {
        let mut flat = Vec::new();
        if let Ok(stream) = self.text.parse::<TokenStream>() {
            flatten(stream, &mut flat);
        }
        flat
    }
}

/// Appends the tokens of `stream` in order; a group's contents follow the group itself.
pub(crate) fn flatten(stream: TokenStream, flat: &mut Vec<TokenTree>) {
    for token in stream {
        let inner = match &token {
            TokenTree::Group(group) => Some(group.stream()),
            _ => None,
        };
        flat.push(token);
        if let Some(inner) = inner {
            flatten(inner, flat);
        }
    }
}

/// The identifier that a token is, or the empty string.
pub(crate) fn ident(token: &TokenTree) -> String {
    match token {
        TokenTree::Ident(ident) => ident.to_string(),
        _ => String::new(),
    }
}

/// Whether a token is this punctuation character.
pub(crate) fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

/// Whether the attributes say that the item is compiled for tests only.
pub(crate) fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && matches!(&attribute.meta, syn::Meta::List(list)
                    if matches!(list.tokens.to_string().as_str(), "test" | "all (test)")))
    })
}

fn keep_directory(name: &str) -> bool {
    if name.starts_with('.') {
        return HIDDEN_DIRECTORIES.contains(&name);
    }
    !SKIPPED_DIRECTORIES.contains(&name)
}
