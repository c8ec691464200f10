-- What PostgreSQL has a function for from here on is a statement here.
select 1;
