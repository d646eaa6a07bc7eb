//! What can still be read of a volume that is refused: enough to keep its dependents from running without it.

use toml::Spanned;
use toml::de::DeValue;

use super::{ConfigError, FilesystemType, Refused, Source, Target, validate};
use crate::name::{MountPoint, UnitName, VolumeName};

/// Reads what of a volume its dependents need to know, however wrong the rest is.
pub(super) fn volume(source: &Source, name: &VolumeName, value: &Spanned<DeValue<'_>>) -> Refused {
    // With `[[volume.NAME]]` it is a list of tables.
    let value = value.get_ref().as_array().and_then(|tables| tables.iter().next()).unwrap_or(value);
    let field = |name: &str| value.get_ref().get(name).map(Spanned::get_ref);
    let kind =
        field("filesystem").and_then(|filesystem| filesystem.get("type")).and_then(|kind| kind.get_ref().as_str());
    let target = if kind == Some(FilesystemType::Swap.as_str()) {
        Some(Target::Swap)
    } else {
        let mount = field("mount").and_then(DeValue::as_str).and_then(|path| MountPoint::new(path).ok());
        mount.map(Target::Mount)
    };
    let units = field("consumers").and_then(DeValue::as_array).into_iter().flatten();
    let consumers = consumers(name, target.as_ref(), units.filter_map(|unit| unit.get_ref().as_str()));
    let auto = field("auto").and_then(DeValue::as_bool).unwrap_or(true);
    Refused { source_path: source.path.clone(), target, consumers, auto, errors: Vec::new() }
}

/// Refuses each volume that seems to be meant by a top-level key that is unknown, or is `volume` and no table.
pub(super) fn misplaced(
    source: &Source,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    error: &ConfigError,
) -> Vec<(VolumeName, Refused)> {
    let is_volume = |value: &Spanned<DeValue<'_>>| {
        ["mount", "backing", "consumers"].iter().any(|field| value.get_ref().get(*field).is_some())
    };
    let mut found: Vec<(String, &Spanned<DeValue<'_>>)> = Vec::new();
    match value.get_ref() {
        DeValue::Table(_) if is_volume(value) => found.push((key.to_owned(), value)),
        DeValue::Table(tables) => {
            found.extend(tables.iter().map(|(name, value)| (name.get_ref().clone().into_owned(), value)));
        }
        DeValue::Array(tables) => {
            found.extend(tables.iter().enumerate().map(|(index, value)| (format!("{key}-{}", index + 1), value)));
        }
        _ => {}
    }
    found.retain(|(_, value)| is_volume(value));
    let refuse = |(name, value): (String, &Spanned<DeValue<'_>>)| {
        let name = VolumeName::new(&name).unwrap_or_else(|_| VolumeName::stand_in(&name));
        let refused = volume(source, &name, value);
        (name, Refused { errors: vec![error.clone()], ..refused })
    };
    found.into_iter().map(refuse).collect()
}

/// Makes one stand-in for all that a file may have said that is no TOML.
///
/// What the parser made of it can't be trusted to have every consumer, so every unit that the text names outside of
/// comments counts as one.
pub(super) fn file(source: &Source, error: ConfigError) -> (VolumeName, Refused) {
    let name = VolumeName::stand_in(source.path.rsplit('/').next().unwrap_or_default());
    let code = source.text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let words = code.flat_map(|line| line.split(['"', '\'', ',', '[', ']', '{', '}', '=', ' ', '\t']));
    let consumers = consumers(&name, None, words);
    (name, Refused { source_path: source.path.clone(), target: None, consumers, auto: true, errors: vec![error] })
}

fn consumers<'a>(volume: &VolumeName, target: Option<&Target>, names: impl Iterator<Item = &'a str>) -> Vec<UnitName> {
    let sound = names.filter_map(|name| UnitName::new(name).ok());
    let mut units: Vec<UnitName> =
        sound.filter(|unit| validate::consumer_fault(volume, target, unit).is_none()).collect();
    units.sort();
    units.dedup();
    units
}
