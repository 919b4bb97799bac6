//! An orchestrator: an agent's task, a tool call below it, and a job that is tried twice.
//!
//! ```sh
//! mayfly up --data-dir ./mf --config FILE &    # with the profiles of tests/interop/examples/mayfly.toml
//! cargo run --example orchestrator -- unix://$PWD/mf/tasks.sock
//! ```
//!
//! It prints what it did as JSON, one object a line.

use mayfly::client::Client;

mod work;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example says what it did")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = std::env::args().nth(1);
    let endpoint = endpoint.ok_or("say where the Tasks API is: unix:///PATH/tasks.sock")?;
    let client = Client::connect(&endpoint).await?;
    println!("{}", work::agent(&client).await?);
    println!("{}", work::job(&client).await?);
    Ok(())
}
