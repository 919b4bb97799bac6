//! Which broker is meant, and how to speak to it.

use std::{
    ops::{Deref, DerefMut},
    path::PathBuf,
    time::Duration,
};

use mayfly_proto::mayfly::v1::operator_client::OperatorClient;

use super::{CliError, Output};
use crate::{
    admin,
    client::{Badge, Client, Door},
};

/// Somebody waits at a prompt: what is not answered soon is to be said, and not to be tried for long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What every command needs to find the broker.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The broker's data directory.
    pub(crate) data_dir: PathBuf,
    /// Where else it is, if it was said.
    pub(super) endpoint: Option<String>,
    /// Where the token is that is shown, if one is.
    pub(super) token_file: Option<PathBuf>,
    /// How to print.
    pub(crate) output: Output,
}

/// The operator's API, and the door that it is behind.
#[derive(Debug)]
pub(super) struct Operator {
    client: OperatorClient<Door>,
    _door: Option<Client>,
}

impl Deref for Operator {
    type Target = OperatorClient<Door>;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for Operator {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}

impl Context {
    /// What orchestrators ask.
    pub(super) async fn tasks(&self) -> Result<Client, CliError> {
        let uri = match &self.endpoint {
            Some(uri) => uri.clone(),
            None => {
                let dir = std::path::absolute(&self.data_dir);
                let dir = dir.map_err(CliError::io("cannot find the working directory"))?;
                format!("unix://{}", dir.join("tasks.sock").display())
            }
        };
        let client = Client::connect(&uri).await?.with_patience(PATIENCE);
        let Some(path) = &self.token_file else { return Ok(client) };
        let read = CliError::io(format!("cannot read `{}`", path.display()));
        Ok(client.with_token(&std::fs::read_to_string(path).map_err(read)?)?)
    }

    /// What operators ask. Their own socket needs no rights but the file's.
    pub(super) async fn operator(&self) -> Result<Operator, CliError> {
        if self.endpoint.is_some() || self.token_file.is_some() {
            let door = self.tasks().await?;
            return Ok(Operator { client: door.operator(), _door: Some(door) });
        }
        let channel = admin::channel(&self.data_dir).await?;
        Ok(Operator {
            client: OperatorClient::with_interceptor(channel, Badge::default()),
            _door: None,
        })
    }
}
