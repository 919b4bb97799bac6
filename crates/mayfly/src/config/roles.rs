//! `[[role]]`: who may do what, beside the user who runs the broker.

use mayfly_policy::rights::{Role, Rule, Subject, Territory};
use serde::Deserialize;

use super::{ConfigError, value};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRole {
    role: String,
    subjects: Vec<String>,
    #[serde(default)]
    profiles: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
}

pub(super) fn read(raw: Vec<RawRole>) -> Result<Vec<Rule>, ConfigError> {
    raw.into_iter().map(RawRole::read).collect()
}

impl RawRole {
    fn read(self) -> Result<Rule, ConfigError> {
        let role = Role::parse(&self.role).ok_or_else(|| {
            let names = Role::ALL.map(|role| format!("\"{}\"", role.name())).join(", ");
            value("role.role", format!("has to be one of {names}"))
        })?;
        if self.subjects.is_empty() {
            return Err(value("role.subjects", "has to name somebody"));
        }
        let subject = |text: &String| {
            let wrong = |rule| value("role.subjects", format!("holds {text:?}: {rule}"));
            Subject::parse(text).map_err(wrong)
        };
        let subjects = self.subjects.iter().map(subject).collect::<Result<_, _>>()?;
        let territory = if role == Role::Orchestrator {
            let land = Territory::of(&self.profiles, &self.paths);
            Some(land.map_err(|(key, rule)| value(&format!("role.{key}"), rule))?)
        } else if self.profiles.is_empty() && self.paths.is_empty() {
            None
        } else {
            let rule = format!("are for orchestrators; {} reaches every task", article(role));
            return Err(value("role.profiles` and `role.paths", rule));
        };
        Ok(Rule { role, subjects, territory })
    }
}

fn article(role: Role) -> String {
    let name = role.name();
    let vowel = name.starts_with(['a', 'o']);
    format!("{} {name}", if vowel { "an" } else { "a" })
}
