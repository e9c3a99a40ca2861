//! `namespace create`, `list`, `show` and `drop`.

use std::process::ExitCode;

use anyhow::Result;
use quorate_sharding::{Namespace, NamespaceKind, NamespaceSpec, SYSTEM_NAMESPACE, ShardMap};
use serde_json::{Value, json};

use super::connect;
use super::output::{hex, layout, printable, table};
use crate::args::{
    CreateNamespaceArgs, Kind, ListNamespacesArgs, NamespaceArgs, NamespaceCommand, Output,
    ShowNamespaceArgs,
};

/// Shards of a wide namespace that does not say how many.
const SHARDS_DEFAULT: u32 = 8;

/// `quorate namespace`.
///
/// # Errors
/// When the cluster cannot be reached or refuses.
pub async fn namespace(args: NamespaceArgs) -> Result<ExitCode> {
    match args.command {
        NamespaceCommand::Create(args) => create(args).await,
        NamespaceCommand::List(args) => list(args).await,
        NamespaceCommand::Show(args) => show(args).await,
        NamespaceCommand::Drop(args) => {
            let client = connect(&args.connect).await?;
            client.drop_namespace(&args.name).await?;
            println!("dropped `{}`", args.name);
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn create(args: CreateNamespaceArgs) -> Result<ExitCode> {
    let kind = match args.kind {
        Kind::Compact => NamespaceKind::Compact,
        Kind::Wide => NamespaceKind::Wide {
            encoding: args.encoding,
        },
    };
    let shards = match args.kind {
        Kind::Compact => args.shards.unwrap_or(1),
        Kind::Wide => args.shards.unwrap_or(SHARDS_DEFAULT),
    };
    let encoding = kind.encoding();
    let spec = NamespaceSpec {
        name: args.name.clone(),
        kind,
        shards,
        replicas: args.replicas,
        splits: args
            .splits
            .iter()
            .map(|s| encoding.encode(s.as_bytes()))
            .collect(),
    };
    // What makes no sense is refused before anything is sent.
    spec.bounds()?;
    let client = connect(&args.connect).await?;
    client.create_namespace(&spec).await?;
    let map = client.map();
    let made = map.namespace_by_name(&args.name);
    match (args.output, made) {
        (Output::Json, Some(namespace)) => println!("{}", about(&map, namespace)),
        _ => println!("created `{}`", args.name),
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(args: ListNamespacesArgs) -> Result<ExitCode> {
    let client = connect(&args.connect).await?;
    client.refresh().await;
    let map = client.map();
    let all: Vec<&Namespace> = map
        .namespaces()
        .filter(|n| n.id != SYSTEM_NAMESPACE)
        .collect();
    if args.output == Output::Json {
        let all: Vec<Value> = all.iter().map(|n| about(&map, n)).collect();
        println!("{}", Value::from(all));
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|n| {
            let (kind, encoding) = layout(&n.kind);
            let shards = map.shards_of(n.id).len().to_string();
            vec![
                n.name.clone(),
                kind.into(),
                encoding,
                shards,
                n.replicas.to_string(),
            ]
        })
        .collect();
    table(&["NAME", "KIND", "ENCODING", "SHARDS", "REPLICAS"], &rows);
    Ok(ExitCode::SUCCESS)
}

async fn show(args: ShowNamespaceArgs) -> Result<ExitCode> {
    let client = connect(&args.connect).await?;
    client.namespace(&args.name).await?;
    let map = client.map();
    let Some(namespace) = map.namespace_by_name(&args.name) else {
        anyhow::bail!("`{}` was dropped just now", args.name);
    };
    if args.output == Output::Json {
        let mut object = about(&map, namespace);
        let shards = map.shards_of(namespace.id).iter().map(|s| {
            json!({
                "id": s.id,
                "start_hex": hex(&s.start),
                "end_hex": hex(&s.end),
                "epoch": { "range": s.epoch.range, "members": s.epoch.members },
                "replicas": s.replicas.iter()
                    .map(|r| json!({ "id": r.id, "node": r.node })).collect::<Vec<_>>(),
            })
        });
        object["shard_list"] = shards.collect::<Vec<_>>().into();
        println!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    let (kind, encoding) = layout(&namespace.kind);
    println!(
        "{}: {kind}, {encoding}, {} replicas\n",
        namespace.name, namespace.replicas
    );
    let rows: Vec<Vec<String>> = map
        .shards_of(namespace.id)
        .iter()
        .map(|s| {
            let nodes: Vec<String> = s.replicas.iter().map(|r| r.node.to_string()).collect();
            vec![
                s.id.to_string(),
                printable(&s.start),
                printable(&s.end),
                s.epoch.to_string(),
                nodes.join(","),
            ]
        })
        .collect();
    table(&["SHARD", "START", "END", "EPOCH", "NODES"], &rows);
    Ok(ExitCode::SUCCESS)
}

fn about(map: &ShardMap, namespace: &Namespace) -> Value {
    let (kind, encoding) = layout(&namespace.kind);
    json!({
        "id": namespace.id,
        "name": namespace.name,
        "kind": kind,
        "encoding": encoding,
        "shards": map.shards_of(namespace.id).len(),
        "replicas": namespace.replicas,
    })
}
