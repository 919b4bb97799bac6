//! `[envoy]`: the names under which an Envoy asks for what has no name of its own.

use mayfly_serve::sds::Names;
use serde::Deserialize;

use super::{ConfigError, value};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEnvoy {
    default: Option<String>,
    root: Option<String>,
    all: Option<String>,
}

impl RawEnvoy {
    /// Three names that can be told apart from each other and from SPIFFE IDs.
    pub(super) fn read(self) -> Result<Names, ConfigError> {
        let usual = Names::default();
        let names = Names {
            default: self.default.unwrap_or(usual.default),
            root: self.root.unwrap_or(usual.root),
            all: self.all.unwrap_or(usual.all),
        };
        let all = [("default", &names.default), ("root", &names.root), ("all", &names.all)];
        for (key, name) in all {
            let key = format!("envoy.{key}");
            if name.is_empty() || name.contains("://") {
                return Err(value(&key, "has to be a name and no SPIFFE ID"));
            }
            if all.iter().filter(|(_, other)| *other == name).count() > 1 {
                return Err(value(&key, "has to differ from the other two names"));
            }
        }
        Ok(names)
    }
}
