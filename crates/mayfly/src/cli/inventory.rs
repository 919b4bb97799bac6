//! `mayfly inventory`: who holds what, for which task, until when.

use clap::Args;
use mayfly_proto::mayfly::v1 as wire;
use serde_json::{Value, json};

use super::{CliError, Context, output};
use crate::{admin, clock};

/// As much of an intent as a row has room for; `mayfly task show` has it whole.
const INTENT_CHARS: usize = 32;

/// Arguments of `mayfly inventory`.
#[derive(Args, Debug)]
pub(crate) struct InventoryArgs {
    /// Only what this owner answers for
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Only tasks of this profile
    #[arg(long, default_value = "", hide_default_value = true)]
    profile: String,
    /// Only this task and what is below it
    #[arg(long, value_name = "TASK", default_value = "", hide_default_value = true)]
    task: String,
}

pub(crate) async fn inventory(context: &Context, args: InventoryArgs) -> Result<(), CliError> {
    let mut client = context.operator().await?;
    let mut request = wire::InventoryRequest {
        owner: args.owner,
        profile: args.profile,
        tree: args.task,
        ..wire::InventoryRequest::default()
    };
    let mut holdings = Vec::new();
    loop {
        let page = client.inventory(request.clone()).await.map_err(admin::AdminError::from)?;
        let page = page.into_inner();
        holdings.extend(page.holdings);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if context.output.is_data() {
        output::data(context.output, &Value::Array(holdings.iter().map(value).collect()));
    } else {
        print(holdings);
    }
    Ok(())
}

fn value(one: &wire::Holding) -> Value {
    json!({
        "serial": one.serial,
        "kind": one.kind,
        "spiffe_id": one.spiffe_id,
        "task": one.task,
        "version": one.version,
        "profile": one.profile,
        "owner": one.owner,
        "holder": one.holder,
        "intent": output::maybe(&one.intent),
        "not_after": output::maybe_instant(one.not_after_ms),
    })
}

/// A row for each task, and below it one for each of its credentials: side by side two ids fill a screen.
fn print(mut holdings: Vec<wire::Holding>) {
    // Tasks stand together whatever page they came on.
    holdings.sort_by(|a, b| (&a.owner, &a.task, &a.serial).cmp(&(&b.owner, &b.task, &b.serial)));
    let now = clock::now().0;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut tasks = 0;
    let mut last = "";
    for one in &holdings {
        if one.task != last {
            tasks += 1;
            last = &one.task;
            let words = [&one.task, &one.owner, &one.profile, &one.holder];
            let intent = output::shortened(&one.intent, INTENT_CHARS);
            rows.push(words.into_iter().cloned().chain([intent]).collect());
        }
        let until = output::span(one.not_after_ms.saturating_sub(now));
        let serial = format!("  {:<5} {}", one.kind, one.serial);
        rows.push(vec![serial, format!("for {until}")]);
    }
    output::table(&["TASK / CREDENTIAL", "OWNER / LIFE", "PROFILE", "HELD BY", "INTENT"], rows);
    let (credentials, tasks) = (holdings.len() as u64, output::count(tasks, "task"));
    output::line(&format!("{} of {tasks}", output::count(credentials, "credential")));
}
