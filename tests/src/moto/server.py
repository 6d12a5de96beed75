"""Moto's server, with what EC2 documents and moto passes over: of AssignPrivateIpAddresses, and of CreateFleet's client token.

An address is on one network interface of a subnet at a time. Without AllowReassignment it is refused while it is on another one;
with it it leaves that one. A primary address is never taken away, and one that is not there cannot be unassigned.
EC2's reference gives AllowReassignment its meaning, but names no code for its refusal: that is the one of its list for an address in use.

An order of a fleet whose token and parameters are those of an earlier one is that one; with other parameters it is refused.
"""

import threading

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.elastic_network_interfaces import NetworkInterfaceBackend
from moto.ec2.responses.elastic_network_interfaces import ElasticNetworkInterfaces
from moto.ec2.responses.fleets import Fleets
from moto.server import main

assign = ElasticNetworkInterfaces.assign_private_ip_addresses
unassign = NetworkInterfaceBackend.unassign_private_ip_addresses

# Every request has a thread of its own.
lock = threading.Lock()


def found(interface, addresses):
    """Those of the addresses that the interface has, as it keeps them."""
    return [one for one in interface.private_ip_addresses if one["PrivateIpAddress"] in addresses]


def assign_private_ip_addresses(self):
    addresses = self._get_param("PrivateIpAddresses", [])
    with lock:
        # An interface that does not exist takes nothing away from another.
        target = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
        others = [
            other
            for other in self.ec2_backend.enis.values()
            if other.id != target.id and other.subnet.id == target.subnet.id and found(other, addresses)
        ]
        taken = [one for other in others for one in found(other, addresses)]
        if taken and not self._get_bool_param("AllowReassignment", False):
            raise EC2ClientError("InvalidIPAddress.InUse", f"{taken[0]['PrivateIpAddress']} is already in use")
        if any(one["Primary"] for one in taken):
            raise EC2ClientError("InvalidParameterValue", "a primary private IP address cannot be reassigned")
        for other in others:
            unassign(self.ec2_backend, other.id, addresses)
        return assign(self)


def unassign_private_ip_addresses(self, eni_id, private_ip_address=None):
    with lock:
        there = found(self.get_network_interface(eni_id), private_ip_address or [])
        if len(there) < len(private_ip_address or []):
            raise EC2ClientError("InvalidParameterValue", f"some of the addresses are not assigned to interface {eni_id}")
        if any(one["Primary"] for one in there):
            raise EC2ClientError("InvalidParameterValue", "a primary private IP address cannot be unassigned")
        return unassign(self, eni_id, private_ip_address)


ElasticNetworkInterfaces.assign_private_ip_addresses = assign_private_ip_addresses
NetworkInterfaceBackend.unassign_private_ip_addresses = unassign_private_ip_addresses

create = Fleets.create_fleet
# By account, region and token: what was asked, and what was answered.
created = {}
# Held over an order, which may move addresses.
ordering = threading.Lock()


def create_fleet(self):
    token, asked = self._get_param("ClientToken"), repr(sorted(self.querystring.items()))
    if not token:
        return create(self)
    with ordering:
        key = (self.current_account, self.region, token)
        if key not in created:
            created[key] = (asked, create(self))
        if created[key][0] != asked:
            raise EC2ClientError("IdempotentParameterMismatch", "the parameters differ from those of the first order of this token")
        return created[key][1]


Fleets.create_fleet = create_fleet

main()
