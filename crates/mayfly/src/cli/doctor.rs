//! `mayfly doctor`: why a process has the identities that it has, or none.

use clap::Args;
use mayfly_proto::mayfly::v1 as wire;
use serde_json::json;

use super::{CliError, Context, output};
use crate::admin;

/// Arguments of `mayfly doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// The process to look at [default: this one]
    #[arg(long)]
    pid: Option<i32>,
}

pub(crate) async fn doctor(context: &Context, args: &DoctorArgs) -> Result<(), CliError> {
    let mut client = context.operator().await?;
    let status = client.get_status(wire::GetStatusRequest {}).await;
    let status = status.map_err(admin::AdminError::from)?.into_inner();
    let request = wire::DiagnoseRequest { pid: args.pid.unwrap_or(0) };
    let answer = client.diagnose(request).await.map_err(admin::AdminError::from)?.into_inner();
    if context.output.is_data() {
        print_data(context, &status, &answer);
    } else {
        print(&status, &answer);
    }
    Ok(())
}

fn print_data(
    context: &Context,
    status: &wire::GetStatusResponse,
    answer: &wire::DiagnoseResponse,
) {
    let profile = |one: &wire::Explanation| {
        json!({
            "profile": one.profile,
            "matches": one.matches,
            "missing": one.missing,
            "instead": one.instead,
        })
    };
    output::data(
        context.output,
        &json!({
            "trust_domain": status.trust_domain,
        "node": output::maybe(&status.node),
            "issuing": status.issuing,
            "notices": status.notices,
            "workload_socket": status.workload_socket,
            "pid": answer.pid,
            "evidence": answer.evidence,
            "profiles": answer.profiles.iter().map(profile).collect::<Vec<_>>(),
        }),
    );
}

fn print(status: &wire::GetStatusResponse, answer: &wire::DiagnoseResponse) {
    let issuing = if status.issuing { "issuing" } else { "NOT ISSUING, see the broker's log" };
    output::line(&format!("broker    {} (pid {}), {issuing}", status.trust_domain, status.pid));
    if !status.node.is_empty() {
        output::line(&format!("node      {}", status.node));
    }
    output::line(&format!("socket    unix://{}", status.workload_socket));
    for notice in &status.notices {
        output::line(&format!("notice    {notice}"));
    }
    output::line(&format!("process   pid {}", answer.pid));
    for selector in &answer.evidence {
        output::line(&format!("          {selector}"));
    }
    let matching: Vec<_> = answer.profiles.iter().filter(|one| one.matches).collect();
    for one in &matching {
        output::line(&format!("profile   {} matches", one.profile));
    }
    if !matching.is_empty() {
        return;
    }
    let Some(nearest) = answer.profiles.first() else {
        return output::line("profile   none is defined: add one with `mayfly profile apply FILE`");
    };
    output::line(&format!("profile   none matches; the nearest is {}", nearest.profile));
    for missing in &nearest.missing {
        output::line(&format!("          wants {missing}"));
    }
    for instead in &nearest.instead {
        output::line(&format!("          has   {instead}"));
    }
}
