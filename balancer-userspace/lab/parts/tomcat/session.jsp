<%@ page session="false" contentType="text/plain" trimDirectiveWhitespaces="true" import="java.io.InputStream" %><%
    // A server of the session lab: who it is, whose session this is, and how often it was counted up.
    if (request.getParameter("health") != null) {
        out.print("ok");
        return;
    }
    int bytes = 0;
    byte[] buffer = new byte[65536];
    InputStream input = request.getInputStream();
    for (int read = input.read(buffer); read > 0; read = input.read(buffer)) {
        bytes += read;
    }
    HttpSession found = request.getSession(false);
    String login = request.getParameter("login");
    if (login != null) {
        found = request.getSession(true);
        found.setAttribute("user", login);
        found.setAttribute("count", 0);
    } else if (found != null && found.getAttribute("user") != null) {
        found.setAttribute("count", (Integer) found.getAttribute("count") + 1);
    }
    Object user = found == null ? null : found.getAttribute("user");
    Object count = found == null ? null : found.getAttribute("count");
    out.print(System.getProperty("lab.name") + " " + (user == null ? "-" : user) + " " + (count == null ? 0 : count)
            + " " + bytes + " " + response.encodeURL("/"));
%>
