//! A settings file in YAML as dotted keys with their lines. Nested mappings are joined with dots,
//! sequences with commas; scalars keep the text that was written, whatever YAML would make of it.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Deeper nesting than this is no settings file.
const DEPTH_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Flattened {
    pub settings: Vec<YamlSetting>,
    pub problems: Vec<YamlProblem>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct YamlSetting {
    pub key: String,
    pub value: String,
    /// Line of the key, from 1.
    pub line: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct YamlProblem {
    pub line: usize,
    pub reason: String,
}

enum Level {
    Mapping {
        prefix: String,
        /// The key whose value comes next, with its line.
        key: Option<(String, usize)>,
    },
    Sequence {
        key: String,
        line: usize,
        elements: Vec<String>,
    },
}

/// Reads one document. Stops at the first syntax error, which makes the rest meaningless.
pub(super) fn flatten(text: &str) -> Flattened {
    let mut flattened = Flattened::default();
    if let Err(problem) = walk(text, &mut flattened.settings) {
        flattened.problems.push(problem);
    }
    flattened
}

fn walk(text: &str, settings: &mut Vec<YamlSetting>) -> Result<(), YamlProblem> {
    let mut levels: Vec<Level> = Vec::new();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| YamlProblem {
            line: error.marker().line(),
            reason: format!("not valid YAML: {}", error.info()),
        })?;
        let line = span.start.line();
        let problem = |reason: &str| {
            Err(YamlProblem {
                line,
                reason: reason.to_owned(),
            })
        };
        match event {
            Event::DocumentStart(_) if documents > 0 => {
                return problem("a settings file holds one document");
            }
            Event::DocumentStart(_) => documents += 1,
            Event::MappingStart(..) | Event::SequenceStart(..) if levels.len() >= DEPTH_MAX => {
                return problem("nested too deep for a settings file");
            }
            Event::MappingStart(..) => match levels.last_mut() {
                None => levels.push(Level::Mapping {
                    prefix: String::new(),
                    key: None,
                }),
                Some(Level::Mapping { key, .. }) => {
                    let Some((prefix, _)) = key.take() else {
                        return problem("a key must be a plain text");
                    };
                    levels.push(Level::Mapping { prefix, key: None });
                }
                Some(Level::Sequence { .. }) => {
                    return problem("a list of settings holds plain values only");
                }
            },
            Event::SequenceStart(..) => {
                let Some(Level::Mapping { key, .. }) = levels.last_mut() else {
                    return problem("expected settings as key: value");
                };
                let Some((key, line)) = key.take() else {
                    return problem("a key must be a plain text");
                };
                levels.push(Level::Sequence {
                    key,
                    line,
                    elements: Vec::new(),
                });
            }
            Event::MappingEnd => {
                levels.pop();
            }
            Event::SequenceEnd => {
                if let Some(Level::Sequence {
                    key,
                    line,
                    elements,
                }) = levels.pop()
                {
                    let value = elements.join(",");
                    settings.push(YamlSetting { key, value, line });
                }
            }
            Event::Scalar(scalar, style, ..) => match levels.last_mut() {
                // An empty document, or one of comments only.
                None if scalar.is_empty() => {}
                None => return problem("expected settings as key: value"),
                Some(Level::Sequence { elements, .. }) => elements.push(scalar.into_owned()),
                Some(Level::Mapping { prefix, key }) => match key.take() {
                    None if prefix.is_empty() => *key = Some((scalar.into_owned(), line)),
                    None => *key = Some((format!("{prefix}.{scalar}"), line)),
                    // Null: as if not said.
                    Some(_)
                        if style == ScalarStyle::Plain
                            && matches!(scalar.as_ref(), "" | "~" | "null") => {}
                    Some((key, line)) => settings.push(YamlSetting {
                        key,
                        value: scalar.into_owned(),
                        line,
                    }),
                },
            },
            Event::Alias(_) => return problem("aliases are not supported in a settings file"),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> Vec<(String, String, usize)> {
        let flattened = flatten(text);
        assert_eq!(flattened.problems, []);
        flattened
            .settings
            .into_iter()
            .map(|setting| (setting.key, setting.value, setting.line))
            .collect()
    }

    #[test]
    fn flat_nested_and_mixed_keys_are_the_same() {
        let expected = |key: &str, value: &str, line| (key.to_owned(), value.to_owned(), line);
        assert_eq!(
            flat("log.dirs: /a\nlog:\n  retention:\n    ms: 5\n  roll.ms: 0x10\n"),
            [
                expected("log.dirs", "/a", 1),
                expected("log.retention.ms", "5", 4),
                expected("log.roll.ms", "0x10", 5),
            ]
        );
    }

    #[test]
    fn sequences_become_lists_and_nulls_say_nothing() {
        assert_eq!(
            flat("log.dirs: [/a, /b]\nbroker.rack: ~\ncluster.id: \"null\"\n"),
            [
                ("log.dirs".to_owned(), "/a,/b".to_owned(), 1),
                ("cluster.id".to_owned(), "null".to_owned(), 3),
            ]
        );
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(flat(""), []);
        assert_eq!(flat("# comment only\n"), []);
    }

    #[test]
    fn what_is_not_settings_is_refused_with_its_line() {
        for (text, line) in [
            ("just text", 1),
            ("- a\n- b\n", 1),
            ("a: 1\nb: [ {c: 1} ]\n", 2),
            ("a: &x 1\nb: *x\n", 2),
            ("a: 1\n---\nb: 2\n", 2),
            ("a: [1\nb: 2", 2),
        ] {
            let problems = flatten(text).problems;
            assert_eq!(problems.len(), 1, "{text}");
            assert_eq!(problems[0].line, line, "{text}: {}", problems[0].reason);
        }
        let deep = "a: {".repeat(50) + &"}".repeat(50);
        assert_eq!(flatten(&deep).problems.len(), 1);
    }
}
