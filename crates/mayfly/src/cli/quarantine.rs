//! `mayfly quarantine` and `mayfly release`: to stop a task, and to let it go on.

use clap::Args;
use mayfly_proto::mayfly::v1::{self as wire, order_task_request::Order};
use serde_json::json;

use super::{CliError, Context, output};
use crate::admin;

/// Arguments of both.
#[derive(Args, Debug)]
pub(crate) struct QuarantineArgs {
    /// The task's id
    task: String,
    /// Why, for the log
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

pub(crate) async fn quarantine(context: &Context, args: QuarantineArgs) -> Result<(), CliError> {
    order(context, args, Order::Quarantine(true), "quarantined").await
}

pub(crate) async fn release(context: &Context, args: QuarantineArgs) -> Result<(), CliError> {
    order(context, args, Order::Release(true), "released").await
}

async fn order(
    context: &Context,
    args: QuarantineArgs,
    order: Order,
    done: &str,
) -> Result<(), CliError> {
    let mut client = context.operator().await?;
    let QuarantineArgs { task, reason } = args;
    let request = wire::OrderTaskRequest { task: task.clone(), order: Some(order), reason };
    let answer = client.order_task(request).await.map_err(admin::AdminError::from)?.into_inner();
    if context.output.is_data() {
        let value = json!({ "task": task, "version": answer.version, "done": done });
        output::data(context.output, &value);
    } else {
        output::line(&format!("{task} {done}"));
    }
    Ok(())
}
