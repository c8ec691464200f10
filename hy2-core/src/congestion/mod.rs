//! Congestion control: Brutal, BBR and Reno behind one switchable controller per connection.
