// Package v20170312 stands in for the client of a cloud that one of Flannel's backends needs to compile. Go's module proxy
// does not serve the real one. That backend is never used here; asked for anything, this client refuses.
package v20170312

import "errors"

var errNoCloud = errors.New("this flanneld was built without the client of Tencent's cloud")

// Client refuses everything.
type Client struct{}

// Filter is part of a request.
type Filter struct {
	Name   *string
	Values []*string
}

// Route is an entry of a route table.
type Route struct {
	RouteId              *uint64
	DestinationCidrBlock *string
	GatewayType          *string
	GatewayId            *string
	RouteType            *string
	Enabled              *bool
}

// RouteTable is what a question for tables would be answered with.
type RouteTable struct {
	RouteTableId *string
	RouteSet     []*Route
}

// DescribeRouteTablesRequest asks for tables.
type DescribeRouteTablesRequest struct{ Filters []*Filter }

// DescribeRouteTablesResponse is never given.
type DescribeRouteTablesResponse struct {
	Response *struct{ RouteTableSet []*RouteTable }
}

// RoutesRequest names routes to be made or deleted.
type RoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

// NewClientWithSecretId makes a client that refuses everything.
func NewClientWithSecretId(_, _, _ string) (*Client, error) { return &Client{}, nil }

// NewDescribeRouteTablesRequest makes a request.
func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest { return &DescribeRouteTablesRequest{} }

// NewDeleteRoutesRequest makes a request.
func NewDeleteRoutesRequest() *RoutesRequest { return &RoutesRequest{} }

// NewCreateRoutesRequest makes a request.
func NewCreateRoutesRequest() *RoutesRequest { return &RoutesRequest{} }

// DescribeRouteTables refuses.
func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errNoCloud
}

// DeleteRoutes refuses.
func (*Client) DeleteRoutes(*RoutesRequest) (*RoutesRequest, error) { return nil, errNoCloud }

// CreateRoutes refuses.
func (*Client) CreateRoutes(*RoutesRequest) (*RoutesRequest, error) { return nil, errNoCloud }
