//! Making topics.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::{Code, KafkaOptions, error};
use crate::{Error, ErrorKind, Result};

/// Makes the topics that are not there, with the cluster's own number of replicas.
pub(super) async fn make(options: &KafkaOptions, names: &[&str], partitions: i32) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = options
        .base()
        .create()
        .map_err(|e| error("a client can't be made", &e))?;
    let mut new = Vec::with_capacity(names.len());
    for name in names {
        new.push(NewTopic::new(name, partitions, TopicReplication::Fixed(-1)));
    }
    let wait = AdminOptions::new().request_timeout(Some(options.timeout));
    let made = admin.create_topics(&new, &wait).await;
    let made = made.map_err(|e| {
        let what = format!("topics can't be made at {}", options.brokers);
        error(&what, &e)
    })?;
    for outcome in made {
        match outcome {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                let text = format!("the topic `{name}` can't be made: {code}");
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
        }
    }
    Ok(())
}
