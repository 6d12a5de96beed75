//! Secondary private addresses, and the network interface that has them.

use std::net::Ipv4Addr;

use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::operation::describe_network_interfaces::DescribeNetworkInterfacesOutput;
use tokio::time::timeout;

use crate::Ec2;
use crate::error::Error;

/// EC2's code for an interface that it does not know.
const NO_INTERFACE: &str = "InvalidNetworkInterfaceID.NotFound";

/// A network interface, as far as addresses are moved between two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its id.
    pub id: String,
    /// The subnet that it is in. An address cannot leave its subnet.
    pub subnet: String,
    /// The address that it always keeps.
    pub primary: Option<Ipv4Addr>,
    /// The addresses that can be moved to another.
    pub secondary: Vec<Ipv4Addr>,
}

impl Ec2 {
    /// The network interface with this id in this region; `None` when EC2 knows none. Takes 5 s at most
    /// ([`LIMIT`](crate::LIMIT)), as everything here.
    ///
    /// # Errors
    /// Everything that keeps EC2 from saying it.
    pub async fn interface(&self, region: &str, id: &str) -> Result<Option<Interface>, Error> {
        let asked = self.client(region).describe_network_interfaces().network_interface_ids(id);
        match timeout(self.limit, asked.send()).await {
            Err(_) => Err(Error::TimedOut { limit: self.limit }),
            Ok(Ok(answer)) => read(&answer, id).map(Some),
            Ok(Err(error)) if error.code() == Some(NO_INTERFACE) => Ok(None),
            Ok(Err(error)) => Err(Error::of("ec2:DescribeNetworkInterfaces", self.limit, error)),
        }
    }

    /// Gives a network interface these addresses as secondary ones, whoever has them now. To say it again changes nothing.
    ///
    /// That EC2 takes the call is not yet that packets arrive: "Remapping an IP address is an asynchronous operation"
    /// (AssignPrivateIpAddresses in the API Reference).
    ///
    /// # Errors
    /// Everything that keeps EC2 from doing it. After [`Error::TimedOut`] and [`Error::NoAnswer`] it may have done it all the same.
    pub async fn assign(&self, region: &str, interface: &str, addresses: &[Ipv4Addr]) -> Result<(), Error> {
        let call = self.client(region).assign_private_ip_addresses().network_interface_id(interface);
        let call = call.set_private_ip_addresses(Some(texts(addresses))).allow_reassignment(true);
        match timeout(self.limit, call.send()).await {
            Err(_) => Err(Error::TimedOut { limit: self.limit }),
            Ok(said) => said.map(drop).map_err(|error| Error::of("ec2:AssignPrivateIpAddresses", self.limit, error)),
        }
    }

    /// Takes secondary addresses from a network interface; then they are nobody's. EC2 refuses those that it does not have.
    ///
    /// # Errors
    /// As for [`Ec2::assign`].
    pub async fn unassign(&self, region: &str, interface: &str, addresses: &[Ipv4Addr]) -> Result<(), Error> {
        let call = self.client(region).unassign_private_ip_addresses().network_interface_id(interface);
        let call = call.set_private_ip_addresses(Some(texts(addresses)));
        match timeout(self.limit, call.send()).await {
            Err(_) => Err(Error::TimedOut { limit: self.limit }),
            Ok(said) => said.map(drop).map_err(|error| Error::of("ec2:UnassignPrivateIpAddresses", self.limit, error)),
        }
    }
}

fn texts(addresses: &[Ipv4Addr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// The one interface that was asked for.
fn read(answer: &DescribeNetworkInterfacesOutput, id: &str) -> Result<Interface, Error> {
    let found = answer.network_interfaces().iter().find(|one| one.network_interface_id() == Some(id));
    let found = found.ok_or_else(|| Error::Nonsense { detail: "the interface is not in it".to_owned() })?;
    let subnet =
        found.subnet_id().ok_or_else(|| Error::Nonsense { detail: "the interface has no subnet".to_owned() })?;
    let mut interface =
        Interface { id: id.to_owned(), subnet: subnet.to_owned(), primary: None, secondary: Vec::new() };
    for one in found.private_ip_addresses() {
        let text = one.private_ip_address().unwrap_or_default();
        let address = text.parse().map_err(|_| Error::Nonsense { detail: format!("\"{text}\" is no address") })?;
        if one.primary() == Some(true) {
            interface.primary = Some(address);
        } else {
            interface.secondary.push(address);
        }
    }
    Ok(interface)
}
