//! The commands `balancer drop-in …`.

use std::path::PathBuf;

use balancer_api::{client::Client, model::SetDropIn};
use balancer_config::{file, value};
use clap::Subcommand;

use super::{
    Failure, apply, by_all,
    output::{self, Table},
    print_changed,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add or replace a drop-in; services that the file no longer has are removed
    Apply {
        /// The drop-in's name
        #[arg(value_name = "NAME", value_parser = value::name)]
        name: String,
        /// File with sections [[service]] and nothing else
        file: PathBuf,
        /// Change nothing; show the changes and the slots that would move
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a drop-in with its services
    Remove {
        /// The drop-in's name
        #[arg(value_name = "NAME", value_parser = value::name)]
        name: String,
    },
    /// List the drop-ins
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the text of a drop-in
    Show {
        /// The drop-in's name
        #[arg(value_name = "NAME", value_parser = value::name)]
        name: String,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Apply { name, file, dry_run, json } => {
            let text = apply::text(&file, |bytes| file::parse_drop_in(&name, &file, bytes).err())?;
            let drop_in = SetDropIn { file: file.display().to_string(), text, dry_run };
            let applied = client.set_drop_in(&name, &drop_in).await?;
            if json {
                output::print_json(&applied)?;
            } else {
                output::print(&apply::render(&applied, dry_run))?;
            }
            by_all(&applied.not_applied_by)
        }
        Verb::Remove { name } => {
            let changed = client.remove_drop_in(&name).await?;
            print_changed(&changed)
        }
        Verb::List { json } => {
            let drop_ins = client.drop_ins().await?;
            if json {
                return Ok(output::print_json(&drop_ins)?);
            }
            let mut table = Table::new(&["NAME", "SERVICES"]);
            for drop_in in drop_ins {
                table.row([drop_in.name, drop_in.services.join(" ")]);
            }
            Ok(output::print(&table.render())?)
        }
        Verb::Show { name } => Ok(output::print(&client.drop_in(&name).await?.text)?),
    }
}
