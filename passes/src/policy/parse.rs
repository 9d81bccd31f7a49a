//! Reading a policy from TOML, with unknown keys refused before anything else is looked at.

use toml::de::{DeTable, DeValue};

use super::pattern::nearest;
use super::{Policy, PolicyError};

/// A table of the policy: its own keys, and its tables.
struct Table {
    keys: &'static [&'static str],
    tables: &'static [(&'static str, Table)],
    /// Whether keys are the user's: patterns, or names of tables with `keys` where there are any.
    open: bool,
}

const fn leaf(keys: &'static [&'static str]) -> Table {
    Table { keys, tables: &[], open: false }
}

const OPEN: Table = Table { keys: &[], tables: &[], open: true };

const GROUPS: Table = Table { keys: super::groups::KEYS, tables: &[], open: true };

const SCHEMA: Table = Table {
    keys: &["format_version"],
    tables: &[
        ("entropy", leaf(&["estimator", "temperature", "temperature_unit", "bins", "range", "smoothing"])),
        ("target", leaf(&["kind", "value", "decay", "half_life", "first", "every"])),
        (
            "gate",
            Table {
                keys: &["non_finite", "max_pause", "votes"],
                tables: &[
                    ("norm", leaf(&["enabled", "multiple", "deviations", "half_life", "warmup"])),
                    ("entropy", leaf(&["enabled", "low", "high", "warmup"])),
                ],
                open: false,
            },
        ),
        ("rollback", leaf(&["kind", "patience", "refresh", "calm", "backoff", "backoff_min", "recover"])),
        (
            "laws",
            Table {
                keys: &["timing", "signal", "warmup", "max"],
                tables: &[
                    (
                        "micro",
                        Table {
                            keys: &["enabled", "below", "factor", "relax", "period", "min_elements", "min_rank"],
                            tables: &[("tensors", OPEN)],
                            open: false,
                        },
                    ),
                    (
                        "rule",
                        leaf(&[
                            "enabled",
                            "low",
                            "high",
                            "lr_low",
                            "lr_high",
                            "momentum_low",
                            "momentum_high",
                            "momentum_max",
                            "relax",
                            "period",
                        ]),
                    ),
                    ("pi", leaf(&["enabled", "kp", "ki", "period"])),
                ],
                open: false,
            },
        ),
        ("scale", Table { keys: &["global"], tables: &[("tensors", OPEN)], open: false }),
        ("momentum", Table { keys: &["scale", "cap"], tables: &[("tensors", OPEN)], open: false }),
        (
            "spectral",
            Table {
                keys: &["enabled", "k", "alpha", "target", "iterations", "dtype", "min_side", "replicas"],
                tables: &[("tensors", OPEN)],
                open: false,
            },
        ),
        (
            "switch",
            leaf(&[
                "enabled",
                "trigger",
                "rate",
                "step",
                "warmup",
                "half_life",
                "tolerance",
                "period",
                "share",
                "return_above",
                "factor",
            ]),
        ),
        ("replicas", leaf(&["entropy_of", "check_every", "on_mismatch"])),
        ("groups", GROUPS),
        ("states", OPEN),
    ],
    open: false,
};

/// Every key that a policy can have, with its tables; a table of patterns ends in `."PATTERN"`, one of named tables
/// has `NAME` in it.
pub(super) fn keys() -> Vec<String> {
    fn collect(table: &Table, path: &str, keys: &mut Vec<String>) {
        let named = if table.open { "NAME." } else { "" };
        keys.extend(table.keys.iter().map(|key| format!("{path}{named}{key}")));
        if table.open && table.keys.is_empty() {
            keys.push(format!("{path}\"PATTERN\""));
        }
        for (name, inner) in table.tables {
            collect(inner, &format!("{path}{name}."), keys);
        }
    }
    let mut keys = Vec::new();
    collect(&SCHEMA, "", &mut keys);
    keys
}

pub(super) fn parse(text: &str) -> Result<Policy, PolicyError> {
    let toml_error = |error: toml::de::Error| PolicyError::Toml(error.to_string().trim_end().to_owned());
    let table = DeTable::parse(text).map_err(toml_error)?;
    check_keys(text, table.get_ref(), &SCHEMA, "")?;
    toml::from_str(text).map_err(toml_error)
}

fn check_keys(text: &str, found: &DeTable<'_>, schema: &Table, path: &str) -> Result<(), PolicyError> {
    if schema.open {
        let each = leaf(schema.keys);
        let named = found.iter().filter(|_| !schema.keys.is_empty());
        return named
            .filter_map(|(name, value)| Some((name.get_ref(), value.get_ref().as_table()?)))
            .try_for_each(|(name, table)| check_keys(text, table, &each, &format!("{path}.{name}")));
    }
    for (key, value) in found {
        let name = key.get_ref().as_ref();
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        if let Some((_, inner)) = schema.tables.iter().find(|(table, _)| *table == name) {
            // A value that should have been a table is left to the typed reader, which says so.
            if let DeValue::Table(table) = value.get_ref() {
                check_keys(text, table, inner, &full)?;
            }
            continue;
        }
        if !schema.keys.contains(&name) {
            let known = schema.keys.iter().chain(schema.tables.iter().map(|(table, _)| table)).copied();
            let nearest =
                nearest(name, known).map(|k| if path.is_empty() { k.to_owned() } else { format!("{path}.{k}") });
            return Err(PolicyError::UnknownKey { line: line_of(text, key.span().start), key: full, nearest });
        }
    }
    Ok(())
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
}
