//! `[attest]`: whom the broker asks about callers beside the kernel.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, value};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAttest {
    dbus: Option<String>,
    engine: Option<PathBuf>,
}

impl RawAttest {
    /// The bus that systemd is asked over, `None` for the system's own, and the socket of a container engine.
    pub(super) fn read(self) -> Result<(Option<String>, Option<PathBuf>), ConfigError> {
        if self.engine.as_ref().is_some_and(|socket| !socket.is_absolute()) {
            return Err(value("attest.engine", "has to be a path from the root on"));
        }
        let local = |address: &String| {
            let kinds = ["unix:path=/", "unix:abstract="];
            // Several addresses may be joined by semicolons; each would have to be looked at.
            kinds.iter().any(|kind| address.starts_with(kind)) && !address.contains(';')
        };
        match self.dbus {
            // What is believed of units may not come over a network.
            Some(address) if !local(&address) => {
                Err(value("attest.dbus", "has to be an address such as \"unix:path=/run/bus\""))
            }
            address => Ok((address, self.engine)),
        }
    }
}
